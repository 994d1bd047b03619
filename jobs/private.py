"""What others could have written is not loaded as code."""

import os
import stat
from pathlib import Path

from sage.storage import Damaged, Unreadable

SUBMIT = "submit the suite again"


def check(path: Path, cure: str = SUBMIT) -> None:
    """Refuse a file that is loaded as code where anyone but this user could have written it.

    Raises:
        FileNotFoundError: where there is no such file.
        Unreadable: where it or its folder belongs to, or can be written by, another user; or is a link.
    """
    for each in (path.parent, path):
        found = each.lstat() if each is path else each.stat()
        if each is path and not stat.S_ISREG(found.st_mode):
            raise Damaged(each, "is not loaded: it is no regular file", cure)
        if found.st_uid != os.geteuid():
            raise Unreadable(each, f"is not loaded: it belongs to user {found.st_uid}", cure)
        if found.st_mode & 0o022:
            mode = stat.S_IMODE(found.st_mode)
            raise Unreadable(each, f"is not loaded: others can write it (mode {mode:04o})", cure)
