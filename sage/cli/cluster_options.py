"""The options that `sage launch` and `sage doctor` share."""

import sys
from pathlib import Path

from .command import Option


def reach(*, required: bool) -> list[Option]:
    """Return the options for the hosts and for how to connect to them."""
    return [
        Option(
            "hosts",
            Path if required else Path | None,
            None,
            "The hosts file: HOST or USER@HOST on each line, with slots=N for N ranks.",
            required=required,
        ),
        Option("ssh", str, "ssh", "How to call ssh, as in 'ssh -F FILE'."),
        Option("python", str, sys.executable, "Python on every host."),
        Option("cwd", Path, Path(), "The folder in which ranks run."),
        Option("hostip", str | None, None, "Rank 0's address for the others; none given: the first host."),
        Option("port", int | None, None, "A port on that host; none given: one that is free."),
        Option("ranks_per_host", int, 1, "Ranks on each host for which the hosts file has no slots=N."),
    ]
