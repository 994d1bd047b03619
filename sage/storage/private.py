"""Decides whether a file is this user's own, as what is unpickled must be: a pickle can run any code."""

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

    The file and each folder from the one that it is in up to `within` must belong to this user or to root,
    and no other user may write to them. A group of which this user is the only member counts as this user. A
    folder with the sticky bit may be open to all, as others can then not replace what is in it.

    Args:
        within: The outermost folder to check, the folder of runs; without it, only the folder that the file
            is in.

    Raises:
        FileNotFoundError: where there is no such file.
        Unreadable: a ValueError in one line, with the file or folder at fault and the `chmod` that mends it.
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
    """The content of a file that only this user can have written; the very file that is read is checked.

    Raises:
        FileNotFoundError, Unreadable: as `check_private`; Damaged too where it is no regular file.
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
        return  # a link's own mode says nothing
    if found.st_mode & stat.S_IWOTH:
        who, whose = "everybody", "go-w"
    elif found.st_mode & stat.S_IWGRP and not _is_alone_in(found.st_gid):
        who, whose = f"the group {_group_name(found.st_gid)}", "g-w"
    else:
        return
    raise Unreadable(
        path,
        f"is not used: {who} can write to it, and it may run code",
        f"run `chmod {whose} {path}`",
    )


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise Unreadable(
            path,
            f"is not used: it belongs to {user_name(found.st_uid)}, and it may run code",
            "use a folder of runs of your own (--runs)",
        )


def _is_alone_in(group: int) -> bool:
    """Whether it is this user's private group: of the same name, without other members."""
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
