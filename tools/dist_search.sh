#!/usr/bin/env bash
# Searches on several processes: tools/dist_search.sh CONFIG N [ARGS...]; --help tells more.
exec "$(dirname "${BASH_SOURCE[0]}")/dist_launch.sh" search.py "CONFIG" "$@"
