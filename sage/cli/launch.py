"""`sage launch`: start one run on several hosts over ssh."""

from pathlib import Path
from typing import Any

from .cluster_options import reach
from .command import Argument, Command
from .values import Suggestions

NOTES = """\
    sage launch --hosts hosts.txt resnet20-cifar10 --reducer sage --density 0.001

Every rank runs `PYTHON -m sage run ...` in this folder, or in --cwd, with this checkout first on its path.
Both must be on a file system that the hosts share. Each rank gets hostip, port, rank, world_size and
local_rank, and of this process's variables those that begin with SAGE_, GLOO_, NCCL_, TORCH_ or OMP_.

SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 are sent on to all ranks. They agree on a step, save checkpoints and
end with status 75. A second SIGTERM or SIGINT ends them within ten seconds. When one rank fails, the others
have ten seconds to report what they saw, and are then ended. No rank outlives this process, however it
ends.

The exit status is 0 when all ranks finished, 75 when they stopped and saved, 2 when one rank would fail
again, and 1 otherwise. A line names the rank that failed first.
"""


def launch(*, arguments: tuple[str, ...], cwd: Path, **given: Any) -> int:
    """Start the run."""
    from ..cluster.launch import main
    from ..cluster.settings import Launch

    return main(Launch(cwd=cwd.absolute(), **given), arguments)


command = Command(
    "launch",
    launch,
    [
        *reach(required=True),
        Argument(
            "arguments",
            str,
            "The workload and the options of `sage run`.",
            required=False,
            num_values=-1,
            suggestions=Suggestions("workloads"),
        ),
    ],
    help="Start one run on several hosts over ssh. A hosts file names the hosts.",
    notes=NOTES,
    takes_rest=True,
)
