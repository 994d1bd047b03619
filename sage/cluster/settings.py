"""The validated options of `sage launch` and `sage doctor`: the hosts, and how to start ranks there."""

import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from sage.comm.launchers import MOST_LOCAL
from sage.comm.variables import address
from sage.output.text import clean_text

MOST_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The hosts, and how ranks start there.

    Raises:
        ValueError: An option is invalid; the message has the option, its value and what is allowed.
    """

    hosts: Path | None = None
    """The hosts file: HOST or USER@HOST per line, with slots=N for N ranks."""
    ssh: str = "ssh"
    """The ssh command, as a shell's words."""
    python: str = sys.executable
    """Python on every host."""
    cwd: Path = field(default_factory=Path.cwd)
    """The ranks' working directory."""
    ranks_per_host: int = 1
    """The number of ranks of a host without slots=N."""
    hostip: str | None = None
    """Rank 0's address for the other ranks; None: the first host's."""
    port: int | None = None
    """A port there; None: a free one."""
    advise: bool = False
    """Whether to run `sage advise` in place of `sage run`."""

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ValueError(f"--port {self.port}: expected 1 to 65535")
        if not 1 <= self.ranks_per_host <= MOST_LOCAL:
            raise ValueError(f"--ranks-per-host {self.ranks_per_host}: expected 1 to {MOST_LOCAL}")
        if self.hostip is not None:
            object.__setattr__(self, "hostip", address({"--hostip": self.hostip}, "--hostip"))
        if not self.python.strip():
            raise ValueError("--python is empty: expected a Python, as in --python /usr/bin/python3")
        ssh_words(self.ssh)


@dataclass(frozen=True, kw_only=True)
class DoctorSettings(Launch):
    """The nodes to check, and how.

    Raises:
        ValueError: An option is invalid; the message has the option, its value and what is allowed.
    """

    ranks: int = 2
    """The number of ranks on this machine, without hosts and SLURM."""
    interface: str | None = None
    """The network interface for gloo and NCCL."""
    runs: Path = Path("runs")
    """The folder that all nodes should share."""
    timeout: float = 15.0
    """Time limit of a step in seconds."""

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= MOST_LOCAL:
            raise ValueError(f"--ranks {self.ranks}: expected 1 to {MOST_LOCAL}")
        if not 1 <= self.timeout <= MOST_SECONDS:
            raise ValueError(f"--timeout {self.timeout:g}: expected 1 to {MOST_SECONDS:g}")
        super().__post_init__()
        if self.interface is not None and not re.fullmatch(r"[!-~]{1,15}", self.interface):
            shown = clean_text(self.interface, 40)
            raise ValueError(f"--interface {shown!r}: expected the name of an interface, as eth0")
        if not self.cwd.is_dir():
            raise ValueError(f"--cwd {clean_text(str(self.cwd), 200)}: there is no such folder")


def ssh_words(command: str) -> list[str]:
    """The words of --ssh, split as a shell splits them.

    Raises:
        ValueError: The text cannot be split, or is empty.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"--ssh {clean_text(command, 80)!r}: {error}; expected a shell's words") from error
    if not words:
        raise ValueError("--ssh is empty: expected a command, as in --ssh 'ssh -F FILE'")
    return words
