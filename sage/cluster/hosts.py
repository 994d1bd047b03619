"""The hosts file: a host a line, as ssh takes it, and how many ranks it has room for.

# what follows a hash is for people
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

ALLOWED = f"allowed is `HOST` or `USER@HOST`, either with `slots=N` after it, N being 1 to {MOST_LOCAL}"

MOST_BYTES = 2**24
"""The largest hosts file that is read."""


@dataclass(frozen=True)
class Host:
    """One host of the file."""

    name: str
    """As ssh takes it: an address, a name, or an alias of its configuration, maybe with `user@` before it."""
    slots: int = 1
    """Number of ranks."""

    @property
    def address(self) -> str:
        """The name without the user."""
        return self.name.rpartition("@")[2]


def read_hosts(path: Path, slots: int = 1) -> list[Host]:
    """The hosts of a file in its order; one that is named on several lines has the slots of all of them.

    Args:
        path: The hosts file; a leading `~` is the home folder.
        slots: Ranks on a line that does not say how many.

    Raises:
        ValueError: where the file is missing, empty or wrong; names the line and what is allowed.
    """
    try:
        text = read_text(path.expanduser(), limit=MOST_BYTES)
    except Unreadable as error:
        raise ValueError(f"cannot read the hosts file: {error}") from error
    except FileNotFoundError:
        raise ValueError(f"cannot read the hosts file {path}: No such file or directory") from None
    except (OSError, RuntimeError, ValueError) as error:  # no home folder, or a name that no file can have
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
        raise ValueError(f"no host in {path}: give one a line; {ALLOWED}")
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
    return ". A port is said in ssh's configuration: --ssh 'ssh -F FILE'" if has_port else ""
