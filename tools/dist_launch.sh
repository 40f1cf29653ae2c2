#!/usr/bin/env bash
# Starts a tool in several processes with torchrun; dist_train.sh, dist_search.sh and dist_test.sh
# call it: dist_launch.sh TOOL.py "NAMES OF ITS POSITIONAL ARGUMENTS" "$@"
set -euo pipefail

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$tools")
tool=$1
read -r -a names <<<"$2"
shift 2

usage() {
    cat <<EOF
Usage: tools/dist_${tool%.py}.sh ${names[*]} N [ARGS...]
Runs tools/$tool in N processes of this machine; ARGS go to tools/$tool.
Environment variables:
  NNODES         number of machines (1); LEAST:MOST lets torchrun go on with fewer
  NODE_RANK      rank of this machine, from 0 (0); unused with LEAST:MOST
  MASTER_ADDR    address of the machine with rank 0 (127.0.0.1)
  PORT           port on that machine (a free one; 29500 with several machines)
  TORCHRUN_ARGS  more arguments for torchrun, split at spaces: --max-restarts=3 starts a run
                 again that lost a process (give --resume in ARGS), --rdzv-id=NAME names it
  PYTHON         Python to run (that of the active environment, else .venv's)
EOF
}

refuse() {
    echo "error: $1" >&2
    usage >&2
    exit 2
}

case ${1:-} in -h | --help) usage; exit 0 ;; esac
[ $# -gt ${#names[@]} ] || refuse "expected ${names[*]} N, got $# of $((${#names[@]} + 1)) arguments"
positional=("${@:1:${#names[@]}}")
shift ${#names[@]}
processes=$1
shift
[ -f "${positional[0]}" ] || refuse "${names[0]} '${positional[0]}' is not a file"
[[ $processes =~ ^[1-9][0-9]*$ ]] || refuse "N must be a whole number from 1, got '$processes'"

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$root/.venv/bin/python" ]; then
        PYTHON=$root/.venv/bin/python
    fi
fi

nodes=${NNODES:-1}
read -r -a torchrun_args <<<"${TORCHRUN_ARGS:-}"
if [ "$nodes" = 1 ] && [ -z "${PORT:-}" ]; then
    # Port 0: torchrun takes a free one, so that two runs on one machine do not meet.
    rendezvous=(--rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0 --local-addr=127.0.0.1)
elif [[ $nodes == *:* ]]; then
    # Machines come and go: they agree on their ranks.
    rendezvous=(--rdzv-backend=c10d
        --rdzv-endpoint="${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}" --rdzv-id=mmscale)
else
    rendezvous=(--node-rank="${NODE_RANK:-0}" --master-addr="${MASTER_ADDR:-127.0.0.1}"
        --master-port="${PORT:-29500}")
fi

# One thread a process that sleeps when it waits; set before torch is imported.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
# A store of its own for each start: after a restart gloo would find the dead processes' ports.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -m torch.distributed.run --nnodes="$nodes" --nproc-per-node="$processes" \
    "${rendezvous[@]}" ${torchrun_args[@]+"${torchrun_args[@]}"} \
    "$tools/$tool" "${positional[@]}" --launcher pytorch "$@"
