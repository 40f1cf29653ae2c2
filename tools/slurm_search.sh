#!/usr/bin/env bash
# Searches under Slurm: tools/slurm_search.sh PARTITION JOB_NAME CONFIG WORK_DIR [ARGS...]
exec "$(dirname "${BASH_SOURCE[0]}")/slurm_launch.sh" search.py "$@"
