"""What the tools share: command line, configs, runner, resume."""
