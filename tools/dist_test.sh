#!/usr/bin/env bash
# Tests on several processes: tools/dist_test.sh CONFIG CHECKPOINT N [ARGS...]; --help tells more.
exec "$(dirname "${BASH_SOURCE[0]}")/dist_launch.sh" test.py "CONFIG CHECKPOINT" "$@"
