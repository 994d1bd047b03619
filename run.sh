#!/usr/bin/env bash
# One rank of a run; or all of its ranks on this machine, where nobody says which rank this is.
#
#     ./run.sh                                        the defaults below, all ranks here
#     ./run.sh lstm-topics --reducer topk             a workload and `sage run`'s own options, all ranks here
#     hostip=10.0.0.1 port=29500 rank=0 world_size=4 ./run.sh
#                                                     rank 0 of 4; likewise 1 to 3, on this or other nodes
#
# hostip is rank 0's address and port a free one there. Under SLURM, Open MPI and torchrun, rank and world_size
# may be left to the launcher. Paths, as that of --runs, are relative to where you are, not to this file.
#
# The Python is $PYTHON; else .venv's beside this file; else python3, as an activated environment has it. The exit
# status is that of `sage run`: 0 finished, 75 stopped by a signal and saved, 1 failed, 2 asked wrongly.
set -euo pipefail

# What runs where nothing is asked for. Set in the environment, each of the three counts beside arguments too,
# as in: workload=digits-ff reducer=topk ./run.sh --density 0.1
if [[ $# -eq 0 ]]; then
    workload=${workload:-digits}
    reducer=${reducer:-sage}
    world_size=${world_size:-2}
fi

fail() {
    echo "run.sh: $1" >&2
    exit 2
}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
if [[ -n ${PYTHON:-} ]]; then
    python=$PYTHON
elif [[ -x $here/.venv/bin/python ]]; then
    python=$here/.venv/bin/python
else
    wanted="make $here/.venv, activate an environment with torch, or set PYTHON"
    python=$(command -v python3) || fail "found no python3: $wanted"
    "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' ||
        fail "$python has no torch: $wanted"
fi

# A folder of the caller's that is called sage must not stand in front of this one.
export PYTHONSAFEPATH=1 PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

if [[ $# -gt 0 && $1 != -* ]]; then
    workload=$1
    shift
fi
exec "$python" -m sage run ${workload:+"$workload"} \
    ${reducer:+--reducer "$reducer"} ${world_size:+--world-size "$world_size"} "$@"
