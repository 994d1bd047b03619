"""Reads one rank's place from the environment: rank, world size and rendezvous address.

The first of these that is set is used:

1. `hostip` and `port`: bare nodes, one shell per rank (`run.sh`), with `rank` and `world_size`. The latter
   two may come from a launcher that numbers its tasks (`sage.comm.launchers`).
2. `MASTER_ADDR`, `MASTER_PORT`, `RANK` and `WORLD_SIZE`, as torchrun and other launchers set them.
3. A launcher's variables. The tasks of srun use their first node as rendezvous address. Every other launcher
   needs hostip and port, or MASTER_ADDR and MASTER_PORT, since its tasks do not know each other's addresses.

If none is set, a run starts its ranks on this machine. If a launcher has started several tasks, they join
one run or end with an error; they never become several runs. docs/how-to/launchers.md has a table of cases.
"""

import os
import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sage.comm.address import is_called_loopback
from sage.comm.launcher_environment import (
    MOST_RANKS,
    Task,
    innermost,
    local_rank,
    number_below,
    numbered,
    refuse_fewer,
    refuse_half,
    tasks_of,
)
from sage.comm.launchers import PLAIN, SLURM, TORCHRUN
from sage.comm.variables import address, are_not_set, first_node, number, setting

MOST = 2**32 - 1
"""Maximum value of counters such as job numbers."""

SECRET = "SAGE_SECRET"


@dataclass(frozen=True, kw_only=True)
class Place:
    """One rank's place in the process group."""

    rank: int
    world_size: int
    hostip: str
    port: int
    local_rank: int = 0
    """Rank within this node, which selects the GPU."""
    source: str = "spawned here"
    """Where these values were read from, for error messages."""
    attempt: int = 0
    """Number of restarts of all ranks, if the launcher counts them.

    It separates the keys of the attempts in a store that outlives an attempt."""
    secret: str = field(default="", repr=False)
    """Shared secret of the ranks of this run (SAGE_SECRET), which authenticates their messages; "": none."""


def place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """Return this process's place from the environment, or None if the environment has none.

    Raises:
        ValueError: if the variables are incomplete, invalid or contradictory; one line with the variables,
            their values and the allowed values.
    """
    tasks = tasks_of(environ)
    if "hostip" in environ or environ.get("rank"):
        return _bare(environ, tasks)
    group = innermost(tasks)
    is_alone = group is None or group.size == 1
    if "MASTER_ADDR" in environ and "RANK" in environ:
        is_complete = "MASTER_PORT" in environ and "WORLD_SIZE" in environ
        if is_alone or is_complete:
            return _by_torch(environ, tasks)
    if is_alone:
        refuse_half(environ, tasks)
        return None
    assert group is not None
    return _among_others(environ, tasks, group)


# The three sources of a place.


def _bare(environ: Mapping[str, str], tasks: Sequence[Task]) -> Place:
    """Return the place from hostip and port, with the rank from `rank` or from a launcher."""
    task = None if "rank" in environ else numbered(environ, tasks)
    names = ("hostip", "port", "rank", "world_size") if task is None else ("hostip", "port")
    if missing := [name for name in names if name not in environ]:
        given = "hostip" if "hostip" in environ else "rank"
        raise ValueError(
            f"{setting(environ, given)} is set, but {are_not_set(missing)}. One rank on a bare node "
            "needs all of hostip (rank 0's address), port (a free port there), rank (0 to world_size - 1) "
            "and world_size, as in hostip=10.0.0.1 port=29500 rank=0 world_size=4 ./run.sh; "
            f"unset {given} to start all ranks here"
        )
    hostip, port = address(environ, "hostip"), number(environ, "port", 1, 65535)
    if task is not None:
        refuse_fewer(f"{task.size_name}={task.size}", task.size, tasks)
        return _at(environ, task, tasks, hostip, port, f"hostip/port, and {task.launcher.name}'s rank")
    size = number(environ, "world_size", 1, MOST_RANKS)
    rank = number_below(environ, "rank", "world_size", size)
    refuse_fewer(f"world_size={size}", size, () if "SLURM_PTY_PORT" in environ else tasks)
    if environ.get("local_rank"):
        local = number_below(environ, "local_rank", "world_size", size)
    else:
        same = [candidate for candidate in tasks if (candidate.rank, candidate.size) == (rank, size)]
        local = local_rank(environ, same, rank if is_called_loopback(hostip) else 0)
    return Place(
        rank=rank,
        world_size=size,
        hostip=hostip,
        port=port,
        local_rank=local,
        source="hostip/port/rank/world_size",
        secret=_secret(environ),
    )


def _by_torch(environ: Mapping[str, str], tasks: Sequence[Task]) -> Place:
    """Return the place from MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE, as in torch.distributed."""
    if missing := [name for name in ("MASTER_PORT", "WORLD_SIZE") if name not in environ]:
        raise ValueError(
            f"{setting(environ, 'MASTER_ADDR')} and {setting(environ, 'RANK')} are set, but "
            f"{are_not_set(missing)}: set all of MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE, or unset "
            "RANK to start all ranks here"
        )
    launcher = TORCHRUN if TORCHRUN.sign in environ else PLAIN
    size = number(environ, "WORLD_SIZE", 1, MOST_RANKS)
    rank = number_below(environ, "RANK", "WORLD_SIZE", size)
    # If each of several tasks starts its own torchrun, each torchrun would be a separate run.
    agents = launcher.agents if launcher.agents in environ else "WORLD_SIZE"
    count = number(environ, agents, 1, MOST_RANKS)
    outer = () if "SLURM_PTY_PORT" in environ else tasks
    refuse_fewer(
        f"{agents}={count}",
        count,
        [outer_task for outer_task in outer if outer_task.launcher is not TORCHRUN],
    )
    hostip, port = address(environ, "MASTER_ADDR"), number(environ, "MASTER_PORT", 1, 65535)
    task = Task(launcher=launcher, rank=rank, size=size, size_name="WORLD_SIZE")
    source = "torchrun" if launcher is TORCHRUN else "MASTER_ADDR/MASTER_PORT/RANK/WORLD_SIZE"
    return _at(environ, task, tasks, hostip, port, source)


def _among_others(environ: Mapping[str, str], tasks: Sequence[Task], task: Task) -> Place:
    """Return the place of one of several tasks, from its launcher's variables and MASTER_ADDR if set."""
    refuse_fewer(f"{task.size_name}={task.size}", task.size, tasks)
    # srun --mpi=pmi2 sets the variables of MPICH in addition to its own.
    for step in tasks:
        if step.launcher is SLURM and (step.rank, step.size) == (task.rank, task.size):
            return _in_step(environ, tasks, step)
    if "MASTER_ADDR" in environ and "MASTER_PORT" in environ:
        hostip, port = address(environ, "MASTER_ADDR"), number(environ, "MASTER_PORT", 1, 65535)
        source = f"MASTER_ADDR/MASTER_PORT, and {task.launcher.name}'s rank"
        return _at(environ, task, tasks, hostip, port, source)
    raise ValueError(
        f"{task.launcher.name} has started {task.size} tasks, but no rendezvous address is "
        f"set: set hostip (rank 0's address) and port (a free port there), as in {task.launcher.how}"
    )


def _in_step(environ: Mapping[str, str], tasks: Sequence[Task], step: Task) -> Place:
    """Return the place of a task of srun; the rendezvous is on the step's first node."""
    if "SLURM_PTY_PORT" in environ:
        raise ValueError(
            f"this is task {step.rank} of {step.size} of srun --pty ({setting(environ, step.size_name)}): "
            "omit --pty, or request one task, as in srun --ntasks=1 --pty bash; "
            f"unset {step.size_name} to start all ranks here"
        )
    needed = ("SLURM_STEP_NODELIST", "SLURM_JOB_ID", "SLURM_STEP_ID")
    if missing := [name for name in needed if name not in environ]:
        raise ValueError(
            f"{setting(environ, step.size_name)} means that srun has started {step.size} tasks, but "
            f"{are_not_set(missing)}: pass on all of SLURM's variables, or set hostip and port"
        )
    # The port may be in use; the formula only gives different steps and jobs different ports.
    job, count = (number(environ, name, 0, MOST) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return _at(environ, step, tasks, first_node(environ), 20000 + (job + 101 * count) % 10000, "srun")


def _at(
    environ: Mapping[str, str], task: Task, tasks: Sequence[Task], hostip: str, port: int, source: str
) -> Place:
    """Return the place of a task whose rank a launcher gives."""
    if environ.get("world_size") and number(environ, "world_size", 1, MOST_RANKS) != task.size:
        raise ValueError(
            f"{setting(environ, 'world_size')}, but {task.launcher.name} has started {task.size} tasks "
            f"({setting(environ, task.size_name)}): unset world_size, or set it to {task.size}"
        )
    same = [
        task,
        *(candidate for candidate in tasks if (candidate.rank, candidate.size) == (task.rank, task.size)),
    ]
    local = local_rank(environ, same, task.rank if is_called_loopback(hostip) else 0)
    attempt = task.launcher.attempt
    return Place(
        rank=task.rank,
        world_size=task.size,
        hostip=hostip,
        port=port,
        local_rank=local,
        source=source,
        attempt=number(environ, attempt, 0, MOST) if environ.get(attempt) else 0,
        secret=_secret(environ),
    )


def _secret(environ: Mapping[str, str]) -> str:
    secret = environ.get(SECRET, "")
    if not re.fullmatch(r"[!-~]{0,256}", secret):
        raise ValueError(
            f"{SECRET} is not a valid secret: expected up to 256 letters, digits and signs, without spaces"
        )
    return secret


def local_places(world_size: int) -> list[Place]:
    """Return places for ranks spawned on this machine, on a loopback port that is free at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    secret = secrets.token_hex(16)
    return [
        Place(rank=rank, world_size=world_size, hostip="127.0.0.1", port=port, local_rank=rank, secret=secret)
        for rank in range(world_size)
    ]
