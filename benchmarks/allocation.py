"""A SLURM cluster on this machine with one rank per node, whose links have a given speed in each direction.

It needs root, slurm-wlm and munge.
"""

import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "tests"))

from slurm.cluster import Cluster  # noqa: E402
from slurm.configuration import burst  # noqa: E402

STEPS = (sys.executable, str(CHECKOUT / "benchmarks" / "cluster_steps.py"))
"""The command that measures a calibration and the steps of reducers."""

SAGE = (sys.executable, "-m", "sage")

MACHINE = f"{os.cpu_count()} cores for all ranks, {platform.machine()}, torch {torch.__version__}"


def folder_name(workload: str, ranks: int, rate: str) -> str:
    """Name the folder of a workload's measurements; the workload may have options.

    >>> folder_name("digits --batch-size 8", 2, "1gbit")
    'digits-batch-size-8-2-1gbit'
    """
    return f"{re.sub(r'[^a-z0-9.]+', '-', workload)}-{ranks}-{rate}"


def burst_bytes(rate: str) -> int:
    """Return the bytes that a link of this speed passes at once, before the speed limits the others.

    >>> burst_bytes("10mbit")
    32768
    """
    return 1024 * int(burst(rate).removesuffix("kb"))


@contextmanager
def cluster(ranks: int, rate: str) -> Iterator[Cluster]:
    """Start a cluster with one node for each rank."""
    with (
        tempfile.TemporaryDirectory(prefix="allocation-") as name,
        Cluster(Path(name) / "cluster", nodes=ranks, rate=rate) as started,
    ):
        yield started


@contextmanager
def allocation(ranks: int, rate: str) -> Iterator[Callable[..., str]]:
    """Start a cluster; yield a function that runs a command on every node and returns what it prints."""
    with cluster(ranks, rate) as started:

        def run(*command: str) -> str:
            return started.run(
                *("salloc", f"--nodes={ranks}", "srun", *command),
                cwd=started.folder,
                env={"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
                timeout=3600,
            ).stdout

        yield run
