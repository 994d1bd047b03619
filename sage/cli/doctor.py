"""`sage doctor`: check nodes and network before a run."""

from pathlib import Path
from typing import Any

from .cluster_options import reach
from .command import Command, Option
from .folders import RunsFolder

NOTES = """\
    sage doctor                      in an sbatch script or in salloc: the job's nodes, through srun
    sage doctor --hosts hosts.txt    the hosts of a file, over ssh
    sage doctor                      elsewhere: this machine only

On each node an agent runs for each rank that the job would have, with this Python and this checkout. The
exit status is 0 if no check failed, 1 if a check failed, and 2 if the command line is invalid.
"""


def doctor(*, cwd: Path, json: bool, **given: Any) -> int:
    """Check the nodes."""
    from ..cluster.doctor.command import main
    from ..cluster.settings import DoctorSettings

    return main(DoctorSettings(cwd=cwd.absolute(), **given), as_json=json)


command = Command(
    "doctor",
    doctor,
    [
        *reach(required=False),
        Option("ranks", int, 2, "Number of ranks, if only this machine is checked."),
        Option(
            "interface",
            str | None,
            None,
            "Network interface; sets GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, each in its own syntax.",
        ),
        Option("runs", RunsFolder, Path("runs"), "The folder that all nodes should share."),
        Option("timeout", float, 15.0, "Time limit of a step in seconds."),
        Option("json", bool, False, "Print one JSON object: well, findings, facts by rank."),
    ],
    help="Check nodes and network before a run. It reports each fault, its node and how to fix it.",
    notes=NOTES,
)
