#!/usr/bin/env bash
# Tests under Slurm: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [ARGS...]
exec "$(dirname "${BASH_SOURCE[0]}")/slurm_launch.sh" test.py "$@"
