#!/usr/bin/env bash
# Starts a tool as a Slurm job step and requeues its job; slurm_train.sh, slurm_search.sh and
# slurm_test.sh call it: slurm_launch.sh TOOL.py "$@"
set -euo pipefail

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$tools")
tool=$1
shift
[ "$tool" = test.py ] && last=CHECKPOINT || last=WORK_DIR

usage() {
    cat <<EOT
Usage: tools/slurm_${tool%.py}.sh PARTITION JOB_NAME CONFIG $last [ARGS...]
Runs tools/$tool under srun, one process a GPU; ARGS go to tools/$tool.
Environment variables:
  GPUS           number of processes (8)
  GPUS_PER_NODE  processes on each machine (8, or GPUS where that is fewer)
  CPUS_PER_TASK  CPU cores for each process (5)
  SRUN_ARGS      more arguments for srun, split at spaces
  PYTHON         Python to run (python)
EOT
    [ "$tool" = test.py ] || cat <<EOT
Where WORK_DIR holds a checkpoint or an archive, the run resumes from it. In a batch job, SIGUSR1
and SIGTERM end the run (a training with a checkpoint) and requeue the job:
  sbatch --requeue --open-mode=append --signal=B:USR1@300 --wrap \\
      "exec tools/slurm_${tool%.py}.sh PARTITION JOB_NAME CONFIG WORK_DIR"
EOT
}

refuse() {
    echo "error: $1" >&2
    usage >&2
    exit 2
}

case ${1:-} in -h | --help) usage; exit 0 ;; esac
[ $# -ge 4 ] || refuse "expected PARTITION JOB_NAME CONFIG $last, got $# of 4 arguments"
partition=$1 job=$2 config=$3
[ -f "$config" ] || refuse "CONFIG '$config' is not a file"
arguments=("$config")
if [ "$tool" = test.py ]; then
    arguments+=("$4")
else
    arguments+=(--work-dir "$4")
    # An archive's folder holds nothing but its files.
    state=$(find "$4" -maxdepth 2 \( -name '*.pth' -o -path '*/archive/*' \) -print -quit 2>/dev/null || true)
    case " ${*:5} " in
        *' --resume'*) ;;
        *) [ -z "$state" ] || arguments+=(--resume) ;;
    esac
fi
shift 4

gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
read -r -a srun_args <<<"${SRUN_ARGS:-}"

# One thread a process that sleeps when it waits; set before torch is imported.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# srun hands the signal on to the processes. SIGUSR1 in either case: SIGTERM would end the
# workers of data loaders too, and with them the training before its checkpoint.
step='' told=''
pass_on() {
    told=$1 interrupted=1
    [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null || true
}
trap 'pass_on SIGUSR1' USR1
trap 'pass_on SIGTERM' TERM

srun --partition="$partition" --job-name="$job" --gres=gpu:"$gpus_per_node" \
    --ntasks="$gpus" --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    "${PYTHON:-python}" -u "$tools/$tool" "${arguments[@]}" --launcher slurm "$@" &
step=$!
[ -z "$told" ] || kill -USR1 "$step"
code=0 interrupted=1
while [ -n "$interrupted" ]; do
    interrupted=
    wait "$step" && code=0 || code=$?
done

# 75: a training wrote its checkpoint. 138, 143: ended by SIGUSR1 or SIGTERM, as a search is.
case $code in
    0) exit 0 ;;
    75 | 138 | 143) ;;
    *) [ -n "$told" ] || exit "$code" ;;
esac
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "interrupted: the same command goes on from where the run was" >&2
    exit "$code"
fi
if scontrol show job "$SLURM_JOB_ID" | grep -q JobState=CANCELLED; then
    echo "job $SLURM_JOB_ID was cancelled: not requeued" >&2
    exit "$code"
fi
echo "requeueing job $SLURM_JOB_ID${told:+ after $told}" >&2
scontrol requeue "$SLURM_JOB_ID"
