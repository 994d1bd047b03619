#!/usr/bin/env bash
# Download, verify and convert a data set: ./prepare_dataset.sh NAME [ROOT]; without a name, list the data sets.
#
# Python is $PYTHON; else that of .venv beside this file; else python3 on the PATH.
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
