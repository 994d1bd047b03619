"""Who am I and where do we meet: one rank's place, read from the environment.

Looked for in this order, and the first that is there is taken:

1. `hostip`, `port`, `rank`, `world_size`: bare nodes, one shell a rank (`run.sh`). Under a launcher that
   numbers its own tasks (SLURM, Open MPI, torchrun), `rank` and `world_size` may be left to it.
2. torchrun's `MASTER_ADDR`, `MASTER_PORT`, `RANK`, `WORLD_SIZE`, `LOCAL_RANK`.
3. SLURM's own, in a step of several tasks, as `srun --ntasks=4 sage run` makes: they meet on its first node.

Without any of them a run spawns its ranks here.
"""

import os
import re
import secrets
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from sage.comm.address import is_loopback, resolve

LAUNCHERS = {
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
}
"""Each launcher's variables for rank, world size and rank within the node."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One rank's place in the group."""

    rank: int
    world_size: int
    hostip: str
    port: int
    local_rank: int = 0
    """Rank within this node: which GPU is ours."""
    source: str = "spawned here"
    """Where this was read, for error messages."""
    attempt: int = 0
    """How often the launcher has started all ranks again, where it counts: what an attempt leaves in a store
    that outlives it is not the next one's."""
    secret: str = field(default="", repr=False)
    """What only the ranks of this run know (SAGE_SECRET), so that nobody else can speak for one; "": none."""


def place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place as the environment tells it, or None where it tells nothing.

    Raises:
        ValueError: where it tells only a part, or nonsense; names the variables and what they should be.
    """
    if "hostip" in environ or environ.get("rank"):
        return _bare(environ)
    if "MASTER_ADDR" in environ and "RANK" in environ:
        rank, world_size, local = (_number(environ, name) for name in LAUNCHERS["torchrun"])
        port = _number(environ, "MASTER_PORT")
        return _checked(rank, world_size, local, environ["MASTER_ADDR"], port, "torchrun")
    if "SLURM_STEP_NODELIST" in environ and environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        rank, world_size, local = (_number(environ, name) for name in LAUNCHERS["SLURM"])
        # Nobody has looked whether it is free; each step of each job at least has its own.
        port = 20000 + (_number(environ, "SLURM_JOB_ID") + 101 * _number(environ, "SLURM_STEP_ID")) % 10000
        return _checked(rank, world_size, local, _first_node(environ), port, "srun")
    if environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        raise ValueError(
            f"Open MPI has started {environ['OMPI_COMM_WORLD_SIZE']} tasks, which do not know where to meet: "
            "set hostip (rank 0's address) and port (a free one there), as in "
            "mpirun -x hostip=10.0.0.1 -x port=29500 sage run"
        )
    return None


def _bare(environ: Mapping[str, str]) -> Place:
    names = {"rank": "rank", "world_size": "world_size", "local_rank": "local_rank"}
    source = "hostip/port/rank/world_size"
    if "rank" not in environ:
        for launcher, variables in LAUNCHERS.items():
            if variables[0] in environ:
                names = dict(zip(names, variables, strict=True))
                source = f"hostip/port, and {launcher}'s rank"
                break
    missing = [name for name in ("hostip", "port", names["rank"], names["world_size"]) if name not in environ]
    if missing:
        given = "hostip" if "hostip" in environ else "rank"
        raise ValueError(
            f"{given}={environ[given]} is set, but {', '.join(missing)} is not. One rank on a bare node "
            "needs all of hostip (rank 0's address), port (a free one there), rank (0 to world_size - 1) and "
            "world_size, as in hostip=10.0.0.1 port=29500 rank=0 world_size=4 ./run.sh; "
            f"unset {given} to start all ranks here"
        )
    local = _number(environ, names["local_rank"]) if names["local_rank"] in environ else 0
    return _checked(
        _number(environ, names["rank"]),
        _number(environ, names["world_size"]),
        local,
        environ["hostip"],
        _number(environ, "port"),
        source,
    )


def _first_node(environ: Mapping[str, str]) -> str:
    """The step's first node: its name where that leads there, else the address that SLURM has of it."""
    nodes = environ["SLURM_STEP_NODELIST"]
    if environ.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    first = re.match(r"(?:[^,\[]|\[[^]]*\])*", nodes)
    assert first
    name = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", first[0])
    with suppress(OSError):
        if not any(map(is_loopback, resolve(name))):
            return name
    command = ["scontrol", "--oneliner", "show", "node", name]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return name
    address = re.search(r" NodeAddr=(\S+)", told)
    return address[1] if address else name


def _checked(rank: int, world_size: int, local: int, hostip: str, port: int, source: str) -> Place:
    if world_size < 1:
        raise ValueError(f"world_size={world_size} ({source}): expected 1 or more")
    if not 0 <= rank < world_size:
        most = world_size - 1
        raise ValueError(f"rank={rank} ({source}): expected 0 to {most}, as world_size is {world_size}")
    if not 1 <= port <= 65535:
        raise ValueError(f"port={port} ({source}): expected 1 to 65535")
    if not hostip.strip():
        raise ValueError(f"hostip is empty ({source}): expected rank 0's address or name")
    return Place(rank=rank, world_size=world_size, hostip=hostip, port=port, local_rank=local, source=source)


def _number(environ: Mapping[str, str], name: str) -> int:
    if name not in environ:
        raise ValueError(f"{name} is not set, but the other variables of its launcher are")
    try:
        return int(environ[name])
    except ValueError:
        raise ValueError(f"{name}={environ[name]!r}: expected a whole number") from None


def local_places(world_size: int) -> list[Place]:
    """Places for ranks spawned on this machine, meeting on a port of loopback that was free just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    secret = secrets.token_hex(16)
    return [
        Place(rank=rank, world_size=world_size, hostip="127.0.0.1", port=port, local_rank=rank, secret=secret)
        for rank in range(world_size)
    ]
