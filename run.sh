#!/usr/bin/env bash
# Start one rank of a run; or, if no rank is given, all ranks on this machine.
#
#     ./run.sh                                        the defaults below, all ranks on this machine
#     ./run.sh lstm-topics --reducer topk             a workload and options of `sage run`, all ranks here
#     hostip=10.0.0.1 port=29500 rank=0 world_size=4 ./run.sh
#                                                     rank 0 of 4; start ranks 1 to 3 likewise, here or elsewhere
#     ./run.sh --advise digits                        `sage advise` in place of `sage run`, with its options
#
# hostip is rank 0's address, and port a free port there. Under SLURM, Open MPI and torchrun, rank and world_size may
# be left out: the launcher sets them. Paths, as --runs, are relative to the current folder, not to this file.
#
# Python is $PYTHON; else that of .venv beside this file; else python3 on the PATH. The exit status is that of
# `sage run`: 0 finished, 75 stopped by a signal with a checkpoint written, 1 failed, 2 invalid arguments or settings.
set -euo pipefail

# The defaults of a call without arguments. Each of the three variables also applies beside arguments if it is set
# in the environment, as in: workload=digits-ff reducer=topk ./run.sh --density 0.1
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

# A folder called sage in the current folder must not shadow this one.
export PYTHONSAFEPATH=1 PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

command=run
if [[ ${1:-} == --advise ]]; then
    command=advise
    shift
    unset reducer # `sage advise` chooses it
fi
if [[ $# -gt 0 && $1 != -* ]]; then
    workload=$1
    shift
fi
exec "$python" -m sage "$command" ${workload:+"$workload"} \
    ${reducer:+--reducer "$reducer"} ${world_size:+--world-size "$world_size"} "$@"
