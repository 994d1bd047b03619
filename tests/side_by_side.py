"""How `make test` shares the tests out among the workers of xdist.

A worker takes whole files, so that what a module's fixtures cost is spent once. The tests on a real SLURM are
two shares, each with clusters of its own: they mostly wait for SLURM, and their workers leave the processors
to the others. They come first, then the files with a test marked `slow`, so that no worker starts on a long
file when the others are about to end.
"""

from collections.abc import Iterable
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

SLURM = "tests/slurm/"
SURVIVAL = f"{SLURM}test_survival.py"
"""About as long as the other files of tests/slurm together."""


def share(nodeid: str) -> str:
    """Name the share that a test is in."""
    file = nodeid.partition("::")[0]
    return SLURM if file.startswith(SLURM) and file != SURVIVAL else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have xdist hand out one share after the other, in the order of the tests, for `--dist loadfile`."""
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # which would begin with the files of the most tests
    scheduling = LoadFileScheduling(config, log)
    scheduling._split_scope = share
    return scheduling


def in_order(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The tests: first those of a cluster, then those of files in which one is slow, each else as before."""
    items = list(items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> int:
        if item.nodeid.startswith(SLURM):
            return 0 if item.nodeid.startswith(SURVIVAL) else 1
        return 2 if item.path in slow else 3

    return sorted(items, key=place)
