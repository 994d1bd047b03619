"""Errors for files that cannot be read or written; one-line messages with file, fault and remedy."""

import errno
import pwd
from pathlib import Path

from sage.exit_status import message


class Unreadable(ValueError):
    """Raised for a file that cannot be used, for example because this user may not open it."""

    def __init__(self, path: Path, reason: str, remedy: str = "") -> None:
        space = "" if reason.startswith(",") else " "
        super().__init__(f"{path}{space}{reason}" + (f"; {remedy}" if remedy else ""))
        self.path, self.reason, self.remedy = path, reason, remedy


class Damaged(Unreadable):
    """Raised for a file that is incomplete, empty, not a regular file, or invalid for its kind."""


class OtherVersion(Unreadable):
    """Raised for a file in a format of a newer version of SAGE, which this version cannot read."""


class NotWritten(OSError):
    """Raised for a file that could not be written; the message names a full file system and its usage."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, f"cannot be written, {error.strerror or error}", str(path))

    def __str__(self) -> str:
        return message(self)


def refused(path: Path, error: OSError) -> Unreadable:
    """Turn an OSError from reading into a one-line error; if permission is denied, it names the owner."""
    reason = f"cannot be read: {error.strerror or error}"
    if error.errno not in (errno.EACCES, errno.EPERM):
        return Unreadable(path, reason)
    for parent in (path, *path.absolute().parents):
        try:
            owner = parent.stat().st_uid
        except OSError:  # a parent folder is not accessible
            continue
        where = "it" if parent == path else str(parent)
        return Unreadable(
            path, f"{reason} because {where} belongs to {user_name(owner)}", "ask for read permission"
        )
    return Unreadable(path, reason)


def user_name(number: int) -> str:
    """Return the user's name, or the number if the system has no name for it."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
