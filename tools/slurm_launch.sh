#!/usr/bin/env bash
# Starts a tool as a Slurm job step; slurm_train.sh and slurm_search.sh call it:
# slurm_launch.sh TOOL.py "$@"
set -euo pipefail

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$tools")
tool=$1
shift

usage() {
    cat <<EOF
Usage: tools/slurm_${tool%.py}.sh PARTITION JOB_NAME CONFIG WORK_DIR [ARGS...]
Runs tools/$tool under srun, one process a GPU; ARGS go to tools/$tool.
Environment variables:
  GPUS           number of processes (8)
  GPUS_PER_NODE  processes on each machine (8, or GPUS where that is fewer)
  CPUS_PER_TASK  CPU cores for each process (5)
  SRUN_ARGS      more arguments for srun, split at spaces
  PYTHON         Python to run (python)
EOF
}

refuse() {
    echo "error: $1" >&2
    usage >&2
    exit 2
}

case ${1:-} in -h | --help) usage; exit 0 ;; esac
[ $# -ge 4 ] || refuse "expected PARTITION JOB_NAME CONFIG WORK_DIR, got $# of 4 arguments"
partition=$1 job=$2 config=$3 work_dir=$4
shift 4
[ -f "$config" ] || refuse "CONFIG '$config' is not a file"

gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
read -r -a srun_args <<<"${SRUN_ARGS:-}"

# One thread a process that sleeps when it waits; set before torch is imported.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec srun --partition="$partition" --job-name="$job" --gres=gpu:"$gpus_per_node" \
    --ntasks="$gpus" --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    "${PYTHON:-python}" -u "$tools/$tool" "$config" --work-dir "$work_dir" --launcher slurm "$@"
