"""Environment variables and umask for jobs, runs and SLURM's commands."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from sage.cluster.environment import forwarded_environment
from sage.comm.launchers import clean_environment

FILTERS = ("SQUEUE_", "SCANCEL_")
"""Prefixes of variables that change what squeue prints and scancel does: SQUEUE_PARTITION would hide jobs."""

CONFLICTING = (
    *("ARRAY_INX", "COMMENT", "DISTRIBUTION", "ERROR", "EXPORT", "GPUS", "GPUS_PER_NODE", "GPUS_PER_SOCKET"),
    *("GPUS_PER_TASK", "INPUT", "JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "REQUEUE", "SIGNAL", "WAIT"),
)
"""sbatch's variables, without SBATCH_, that would override what a run needs; see `resources.RULED_OUT`."""

NAMES = {"TIMELIMIT": "time", "MEM_PER_NODE": "mem", "REQ_SWITCH": "switches"}
"""sbatch's options whose variables have another name than the option."""


def for_runs() -> dict[str, str]:
    """This environment without the variables that this process's launcher or job has set."""
    return _without("SUBMITIT_", *FILTERS)


def for_slurm(options: Collection[str] = ()) -> dict[str, str]:
    """The environment for SLURM's commands: task lists are printed in full, and [slurm] takes precedence.

    Args:
        options: the options that [slurm] sets; the sbatch variable of each is removed.
    """
    kept = _without("SUBMITIT_", *FILTERS)
    for name in list(kept):
        option = name.removeprefix("SBATCH_")
        long_name = NAMES.get(option, option.lower().replace("_", "-"))
        if option != name and (option in CONFLICTING or long_name in options):
            del kept[name]
    return {**kept, "SLURM_BITSTR_LEN": "0"}


def for_python() -> dict[str, str]:
    """Variables with which a new Python process finds this code."""
    return {name: value for name, value in forwarded_environment().items() if name.startswith("PYTHON")}


def _without(*prefixes: str) -> dict[str, str]:
    kept = clean_environment(os.environ)
    return {name: value for name, value in kept.items() if not name.startswith(prefixes)}


@contextmanager
def only(variables: Mapping[str, str]) -> Iterator[None]:
    """Set exactly these environment variables within the context."""
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
    """Set this umask within the context; by default new files are private. Yields the previous umask."""
    before = os.umask(mask)
    try:
        yield before
    finally:
        os.umask(before)
