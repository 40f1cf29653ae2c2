"""What the tools share: command line, configs, runner, resume."""

from mmscale.launch.command_line import read_config, set_environment, show
from mmscale.launch.runner import build_runner, run_tool

__all__ = ['build_runner', 'read_config', 'run_tool', 'set_environment', 'show']
