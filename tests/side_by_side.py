"""Distributes the tests of `make test` over the xdist workers.

A worker runs whole files, so that module fixtures are set up once. The tests on a real SLURM form two shares,
each with its own clusters: they mostly wait for SLURM, so their workers use little processor time. They come
first, then the longest file, each function of it by itself, then the files with a test marked `slow`, so that
no worker starts a long file near the end of the session.
"""

from collections.abc import Iterable
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

SLURM = "tests/slurm/"
SURVIVAL = f"{SLURM}test_survival.py"
"""This file takes longer than the other files of tests/slurm together."""

LONGEST = "tests/reducers/test_conformance.py"
"""The file that uses the most processor time; its functions share nothing."""


def share(nodeid: str) -> str:
    """Return the name of the share of a test."""
    file = nodeid.partition("::")[0]
    if file == LONGEST:
        return nodeid.partition("[")[0]
    return SLURM if file.startswith(SLURM) and file != SURVIVAL else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, make xdist distribute whole shares in the order of the tests."""
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # the reordering would start with the files with the most tests
    scheduling = LoadFileScheduling(config, log)
    scheduling._split_scope = share
    return scheduling


def in_order(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Return the tests in the order of their files: clusters, the longest, those with a slow test, others."""
    items = list(items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> int:
        if item.nodeid.startswith(SLURM):
            return 0 if item.nodeid.startswith(SURVIVAL) else 1
        if item.nodeid.startswith(LONGEST):
            return 2
        return 3 if item.path in slow else 4

    return sorted(items, key=place)
