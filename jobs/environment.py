"""The variables and the umask that jobs, cells and SLURM's commands are started with."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from sage.cluster.remote import surroundings
from sage.comm.launchers import clean_environment

FILTERS = ("SQUEUE_", "SCANCEL_")
"""How variables begin that change what squeue prints and scancel does: SQUEUE_PARTITION would hide jobs."""

CROSSING = (
    *("ARRAY_INX", "COMMENT", "DISTRIBUTION", "ERROR", "EXPORT", "GPUS", "GPUS_PER_NODE", "GPUS_PER_SOCKET"),
    *("GPUS_PER_TASK", "INPUT", "JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "REQUEUE", "SIGNAL", "WAIT"),
)
"""Variables of sbatch, after SBATCH_, that would overrule what a cell needs; as in `resources.RULED_OUT`."""

NAMES = {"TIMELIMIT": "time", "MEM_PER_NODE": "mem", "REQ_SWITCH": "switches"}
"""sbatch's options that its variables do not name as options do."""


def for_cells() -> dict[str, str]:
    """This environment without what this process's own launcher or job has set."""
    return _without("SUBMITIT_", *FILTERS)


def for_slurm(options: Collection[str] = ()) -> dict[str, str]:
    """The same for SLURM's commands: lists of tasks are printed whole, and sbatch takes what [slurm] says.

    Args:
        options: what [slurm] has, which goes before the variable of the same option.
    """
    kept = _without("SUBMITIT_", *FILTERS)
    for name in list(kept):
        option = name.removeprefix("SBATCH_")
        said = NAMES.get(option, option.lower().replace("_", "-"))
        if option != name and (option in CROSSING or said in options):
            del kept[name]
    return {**kept, "SLURM_BITSTR_LEN": "0"}


def for_python() -> dict[str, str]:
    """Variables with which another Python finds this code."""
    return {name: value for name, value in surroundings().items() if name.startswith("PYTHON")}


def _without(*prefixes: str) -> dict[str, str]:
    kept = clean_environment(os.environ)
    return {name: value for name, value in kept.items() if not name.startswith(prefixes)}


@contextmanager
def only(variables: Mapping[str, str]) -> Iterator[None]:
    """Have exactly these variables, for what is started meanwhile."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def umask(mask: int = 0o077) -> Iterator[int]:
    """Have this umask meanwhile, by which new files are their owner's alone; gives the one before."""
    before = os.umask(mask)
    try:
        yield before
    finally:
        os.umask(before)
