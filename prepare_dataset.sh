#!/bin/sh
# Fetch, check and convert a data set: sage data prepare NAME [ROOT].
set -eu
python=${PYTHON:-python}
if [ $# -eq 0 ]; then
    {
        echo "usage: $0 NAME [ROOT]"
        "$python" -m sage list
    } >&2
    exit 2
fi
exec "$python" -m sage data prepare "$@"
