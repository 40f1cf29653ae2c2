#!/usr/bin/env bash
# Trains under Slurm: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [ARGS...]
exec "$(dirname "${BASH_SOURCE[0]}")/slurm_launch.sh" train.py "$@"
