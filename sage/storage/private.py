"""Checks that only this user can have written a file; required before unpickling, which can run any code."""

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from sage.storage.errors import Unreadable, refused, user_name
from sage.storage.read import open_regular


def check_private(path: Path, *, within: Path | None = None) -> None:
    """Refuse a file that another user could have written; call it before unpickling.

    The file and each folder from its parent up to `within` must belong to this user or to root, and no other
    user may have write permission. A group with this user as its only member counts as this user. A folder
    with the sticky bit may be writable for all, because other users cannot replace files in it.

    Args:
        within: The outermost folder to check, the folder of runs; if None, only the parent folder is checked.

    Raises:
        FileNotFoundError: The file does not exist.
        Unreadable: (a ValueError) The check failed; the message names the path and the remedy (`chmod`).
    """
    try:
        _check(path, path.stat())
        if path.is_symlink():
            _check(path, path.lstat())
            path = Path(os.path.realpath(path))
            _check_folder(path.parent)
        for folder in _folders(path, within):
            _check_folder(folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refused(path, error) from error


def read_private(path: Path, *, within: Path | None = None, limit: int | None = None) -> bytes:
    """Read a file that only this user can have written; the opened file itself is checked again.

    Raises:
        FileNotFoundError, Unreadable: As in `check_private`.
        Damaged: The file is not a regular file, or is larger than `limit`.
    """
    check_private(path, within=within)
    with open_regular(path, limit=limit) as file:
        _check(path, os.fstat(file.fileno()))
        return file.read()


def _folders(path: Path, within: Path | None) -> Iterator[Path]:
    parents = path.absolute().parents
    outermost = parents[0] if within is None else within.absolute()
    for folder in parents:
        yield folder
        if folder == outermost:
            return


def _check_folder(folder: Path) -> None:
    found = folder.stat()
    if folder.is_symlink():
        _check_owner(folder, folder.lstat())
    if found.st_mode & stat.S_ISVTX:
        _check_owner(folder, found)
    else:
        _check(folder, found)


def _check(path: Path, found: os.stat_result) -> None:
    _check_owner(path, found)
    if stat.S_ISLNK(found.st_mode):
        return  # the mode of a symlink itself has no meaning
    if found.st_mode & stat.S_IWOTH:
        who, whose = "everybody", "go-w"
    elif found.st_mode & stat.S_IWGRP and not _is_alone_in(found.st_gid):
        who, whose = f"the group {_group_name(found.st_gid)}", "g-w"
    else:
        return
    raise Unreadable(
        path,
        f"is not used because {who} can write to it and it may run code",
        f"run `chmod {whose} {path}`",
    )


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise Unreadable(
            path,
            f"is not used because it belongs to {user_name(found.st_uid)} and it may run code",
            "use your own runs folder (--runs)",
        )


def _is_alone_in(group: int) -> bool:
    """Whether the group is this user's private group: the same name, and no other members."""
    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return user.pw_gid == group and found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
