"""Runs parts of a test without root's permissions, because root can read and write every file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def plain_user(folder: Path) -> Iterator[None]:
    """Switch from root to an unprivileged user, who must be able to access the folder."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        assert os.access(folder, os.X_OK, effective_ids=True), f"{folder} cannot be reached"
        yield
    finally:
        if before == 0:
            os.seteuid(0)
