"""The clusters that tests share; tests are skipped if this machine has no SLURM."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import PATH, Cluster, links_need, slurm_needs


@pytest.fixture(scope="session")
def slurm() -> None:
    """Skip if this machine has no SLURM."""
    if reason := slurm_needs():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes of two GPUs, with their own networks as root, else in this machine's network."""
    with Cluster(tmp_path_factory.mktemp("cluster"), namespaces=not links_need(), gpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def loopback(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes of two GPUs in this machine's network, which needs no root."""
    with Cluster(tmp_path_factory.mktemp("loopback"), namespaces=False, gpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def slow(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes with links of 100 Mbit/s."""
    if reason := links_need():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slow"), rate="100mbit") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def forked(slurm: None, request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment in which `python`, `sage` and the ranks of jobs are forked (tests/forked.py).

    It is empty without root, which the server needs to enter a node's namespaces.
    """
    if os.geteuid() != 0:
        return {}
    python: str = request.getfixturevalue("python_command")
    path = f"{Path(python).parent}:{PATH}"
    return {"PATH": path, "PYTHON": python, "PYTHON_EXEC": python}
