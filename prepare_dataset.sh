#!/usr/bin/env bash
# Fetch, check and convert a data set: ./prepare_dataset.sh NAME [ROOT]; without a name, say which there are.
#
# The Python is $PYTHON; else .venv's beside this file; else python3, as an activated environment has it.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
python=${PYTHON:-$here/.venv/bin/python}
[[ -x $(command -v "$python") ]] || python=python3
export PYTHONSAFEPATH=1 PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

if [[ $# -eq 0 ]]; then
    echo "usage: $0 NAME [ROOT], with one of:" >&2
    "$python" -m sage data list >&2
    exit 2
fi
exec "$python" -m sage data prepare "$@"
