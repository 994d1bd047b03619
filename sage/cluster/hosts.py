"""The hosts file: one host per line in ssh's syntax, with its number of ranks.

# a comment
node1
me@node2 slots=4
10.0.0.3
"""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from sage.comm.launchers import MOST_LOCAL
from sage.output.text import clean_text
from sage.storage import Unreadable, read_text

ALLOWED = f"allowed is `HOST` or `USER@HOST`, optionally followed by `slots=N` with N from 1 to {MOST_LOCAL}"

MOST_BYTES = 2**24
"""The largest hosts file that is read."""


@dataclass(frozen=True)
class Host:
    """One host of the file."""

    name: str
    """The host in ssh's syntax: an address, a name or an alias of its configuration, optionally `user@`."""
    slots: int = 1
    """Number of ranks."""

    @property
    def address(self) -> str:
        """The name without the user."""
        return self.name.rpartition("@")[2]


def read_hosts(path: Path, slots: int = 1) -> list[Host]:
    """The hosts of a file in its order; the slots of a host on several lines are added.

    Args:
        path: The hosts file; a leading `~` is expanded.
        slots: Number of ranks of a line without `slots=N`.

    Raises:
        ValueError: The file is missing, empty or invalid; the message has the line and what is allowed.
    """
    try:
        text = read_text(path.expanduser(), limit=MOST_BYTES)
    except Unreadable as error:
        raise ValueError(f"cannot read the hosts file: {error}") from error
    except FileNotFoundError:
        raise ValueError(f"cannot read the hosts file {path}: No such file or directory") from None
    except (OSError, RuntimeError, ValueError) as error:  # no home folder, or an impossible file name
        raise ValueError(f"cannot read the hosts file {clean_text(str(path), 200)}: {error}") from error
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.partition("#")[0].split():
            name, *rest = words
            given = re.fullmatch(r"slots=([1-9][0-9]{0,5})", rest[0]) if rest else None
            count = int(given[1]) if given else slots
            is_wrong = not _is_host(name) or len(rest) > 1 or (rest and not given) or count > MOST_LOCAL
            found[name] = found.get(name, 0) + count
            if is_wrong or found[name] > MOST_LOCAL:
                shown = clean_text(line, 200)
                raise ValueError(f"{path}, line {number}: {shown!r}; {ALLOWED}{_hint(line)}")
    if not found:
        raise ValueError(f"no host in {path}: give one per line; {ALLOWED}")
    return [Host(name, slots) for name, slots in found.items()]


def _is_host(name: str) -> bool:
    user, at, host = name.rpartition("@")
    if len(name) > 300 or (at and not re.fullmatch(r"[\w][\w.@\\-]*", user)):
        return False
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return re.fullmatch(r"\w[\w.-]*", host) is not None


def _hint(line: str) -> str:
    has_port = re.search(r":\d+\b", line) is not None
    return ". Set a port in ssh's configuration: --ssh 'ssh -F FILE'" if has_port else ""
