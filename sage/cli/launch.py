"""`sage launch`: start one run on several hosts over ssh."""

from pathlib import Path
from typing import Any

from .cluster_options import reach
from .command import Argument, Command, Option
from .values import Suggestions

NOTES = """\
    sage launch --hosts hosts.txt resnet20-cifar10 --reducer sage --density 0.001

Every rank runs `PYTHON -m sage run ...` in this folder, or in --cwd, with this checkout first on its path.
Both must be on a file system that the hosts share. Each rank gets hostip, port, rank, world_size and
local_rank, and of this process's variables those that begin with SAGE_, GLOO_, NCCL_, TORCH_ or OMP_.

SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 are forwarded to all ranks. They agree on a step, write a checkpoint
and exit with status 75. A second SIGTERM or SIGINT ends them within ten seconds. If a rank fails, the others
have ten seconds to report the failure, and are then ended. If this process ends in any way, its ranks end
too.

The exit status is 0 if all ranks finished, 75 if they stopped with a checkpoint, 2 if a rank has an error
that would happen again, such as an invalid setting, and 1 otherwise. A line names the first rank that failed.
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
        Option("advise", bool, False, "Run `sage advise` instead of `sage run`."),
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
