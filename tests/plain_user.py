"""Lets a test that root runs see what a plain user sees: root may read and write everything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def plain_user(folder: Path) -> Iterator[None]:
    """Be a plain user where this is root; the folder must be one that this user can reach."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        assert os.access(folder, os.X_OK, effective_ids=True), f"{folder} cannot be reached"
        yield
    finally:
        if before == 0:
            os.seteuid(0)
