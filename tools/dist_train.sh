#!/usr/bin/env bash
# Trains on several processes: tools/dist_train.sh CONFIG N [ARGS...]; --help tells more.
exec "$(dirname "${BASH_SOURCE[0]}")/dist_launch.sh" train.py "CONFIG" "$@"
