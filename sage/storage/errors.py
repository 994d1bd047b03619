"""What is said where a file cannot be read or written: one line with the file, the fault and the cure."""

import errno
import pwd
from pathlib import Path

from sage.exit_status import message


class Unreadable(ValueError):
    """A file on disk that cannot be used, as one of another user's that the file system refuses to open."""

    def __init__(self, path: Path, reason: str, cure: str = "") -> None:
        space = "" if reason.startswith(",") else " "
        super().__init__(f"{path}{space}{reason}" + (f"; {cure}" if cure else ""))
        self.path, self.reason, self.cure = path, reason, cure


class Damaged(Unreadable):
    """A file that is torn, empty, no regular file, or whose content is not what its kind demands."""


class OtherVersion(Unreadable):
    """A whole file that a newer version of SAGE wrote, in a format that this one does not know."""


class NotWritten(OSError):
    """A file that could not be written; of a full file system the message says which, and how full."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, f"cannot be written, {error.strerror or error}", str(path))

    def __str__(self) -> str:
        return message(self)


def refused(path: Path, error: OSError) -> Unreadable:
    """The file system's refusal to read a file, in one line; the owner is named where rights are lacking."""
    reason = f"cannot be read: {error.strerror or error}"
    if error.errno not in (errno.EACCES, errno.EPERM):
        return Unreadable(path, reason)
    for each in (path, *path.absolute().parents):
        try:
            owner = each.stat().st_uid
        except OSError:  # a folder above it is closed
            continue
        where = "it" if each == path else str(each)
        return Unreadable(
            path, f"{reason}, as {where} belongs to {user_name(owner)}", "ask them for the right to read it"
        )
    return Unreadable(path, reason)


def user_name(number: int) -> str:
    """The user's name, or their number where the system has no name for it."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
