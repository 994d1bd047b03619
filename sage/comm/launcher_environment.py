"""Reads the launchers' variables of this process, and rejects those that would start several runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sage.comm.launchers import LAUNCHERS, PLAIN, SLURM, TORCHRUN, Launcher
from sage.comm.variables import are_not_set, number, setting

MOST_RANKS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of a launcher: this process's rank and the number of tasks."""

    launcher: Launcher
    rank: int
    size: int
    size_name: str
    """The variable with the number of tasks."""


def tasks_of(environ: Mapping[str, str]) -> list[Task]:
    """Return the task of each launcher that sets both rank and size, innermost launcher first."""
    return [
        _task(environ, launcher, launcher.size)
        for launcher in LAUNCHERS
        if launcher is not PLAIN
        and {launcher.rank, launcher.size} <= environ.keys()
        and _is_signed(environ, launcher)
    ]


def _is_signed(environ: Mapping[str, str], launcher: Launcher) -> bool:
    return not launcher.sign or launcher.sign in environ


def _task(environ: Mapping[str, str], launcher: Launcher, size_name: str) -> Task:
    size = number(environ, size_name, 1, MOST_RANKS)
    rank = number_below(environ, launcher.rank, size_name, size)
    return Task(launcher=launcher, rank=rank, size=size, size_name=size_name)


def innermost(tasks: Sequence[Task]) -> Task | None:
    """Return the task of the innermost launcher with several tasks, else of the innermost launcher."""
    return next((task for task in tasks if task.size > 1), tasks[0] if tasks else None)


def numbered(environ: Mapping[str, str], tasks: Sequence[Task]) -> Task | None:
    """Return the task that gives the rank if only hostip and port are set; None if no launcher gives it."""
    if tasks:
        return innermost(tasks)
    if SLURM.rank in environ and "SLURM_STEP_ID" not in environ and environ.get("ENVIRONMENT") == "BATCH":
        raise ValueError(
            f"{setting(environ, 'hostip')} is set, but this process is the batch script, not a task of srun: "
            "start it with srun, or unset hostip and port to start all ranks here"
        )
    for launcher in LAUNCHERS:
        if launcher.rank in environ and _is_signed(environ, launcher):
            size_name = {"srun": "SLURM_NTASKS", "PMIx": "world_size"}.get(launcher.name, launcher.size)
            if size_name not in environ:
                raise ValueError(
                    f"{setting(environ, launcher.rank)} is set, but {are_not_set([size_name])}: set rank and "
                    "world_size in addition to hostip and port"
                )
            return _task(environ, launcher, size_name)
    return None


def local_rank(environ: Mapping[str, str], same: Iterable[Task], otherwise: int) -> int:
    """Return the rank within the node, from the first launcher that sets it, or else `otherwise`."""
    for task in same:
        launcher, size_name, size = task.launcher, task.size_name, task.size
        if launcher.local_size in environ:
            size_name = launcher.local_size
            size = number(environ, size_name, 1, size, f" because {task.size_name} is {size}")
        if launcher.local_rank in environ:
            return number_below(environ, launcher.local_rank, size_name, size)
        if launcher.local_size in environ and launcher in (TORCHRUN, PLAIN):  # ranks fill node by node
            return task.rank % size
    return otherwise


# Checks.


def refuse_fewer(what: str, size: int, tasks: Iterable[Task]) -> None:
    """Reject a world size below the number of tasks, since the tasks would form several groups."""
    for task in tasks:
        if task.size > size:
            name = task.launcher.name
            raise ValueError(
                f"{what}, but {name} has started {task.size} tasks ({task.size_name}={task.size}), which "
                "would form several runs: let all tasks join one run, or start one task per run"
            )


def refuse_half(environ: Mapping[str, str], tasks: Sequence[Task]) -> None:
    """Reject variables of one of several tasks from which the rank or the number of tasks is missing.

    Each of these tasks would start a run of its own.
    """
    for launcher in LAUNCHERS if not tasks else ():
        rank, size = launcher.rank, launcher.size
        if launcher is PLAIN or not _is_signed(environ, launcher):
            continue
        if rank in environ and size not in environ:
            # Without the variables of a step, SLURM's task 0 is the batch script, which is a single process.
            if launcher is SLURM and environ[rank] in ("0", ""):
                continue
            raise ValueError(
                f"{setting(environ, rank)} means that {launcher.name} has started this task, but the number "
                f"of tasks is unknown{f' because {size} is not set' if size else ''}: set hostip, port, rank "
                f"and world_size, or unset {rank} to start all ranks here"
            )
        if size in environ and rank not in environ and environ[size] != "1":
            raise ValueError(
                f"{setting(environ, size)} means that {launcher.name} has started several tasks, but "
                f"{are_not_set([rank])}: set hostip, port, rank and world_size, or unset {size} to start all "
                "ranks here"
            )
    if environ.get("WORLD_SIZE", "1") != "1" and {"RANK", "MASTER_ADDR"} & environ.keys():
        given = [name for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE") if name in environ]
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "RANK") if name not in environ]
        raise ValueError(
            f"{setting(environ, 'WORLD_SIZE')} is set ({', '.join(given)}), but {are_not_set(missing)}: set "
            "all of MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE, or unset WORLD_SIZE to start all ranks "
            "here"
        )


def number_below(environ: Mapping[str, str], name: str, size_name: str, size: int) -> int:
    """Return a variable's number from 0 to `size` - 1; raises ValueError as `number` does."""
    return number(environ, name, 0, size - 1, f" because {size_name} is {size}")
