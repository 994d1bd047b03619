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
        Option("ssh", str, "ssh", "The ssh command, such as 'ssh -F FILE'."),
        Option("python", str, sys.executable, "The Python interpreter on every host."),
        Option("cwd", Path, Path(), "The ranks' working directory."),
        Option("hostip", str | None, None, "Rank 0's address for the other ranks; default: the first host."),
        Option("port", int | None, None, "A port on that host; default: a free one."),
        Option("ranks_per_host", int, 1, "Number of ranks on a host without slots=N."),
    ]
