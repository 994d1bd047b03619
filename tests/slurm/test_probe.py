"""Tests that the probe and `sage doctor` measure the known rates of throttled links."""

import json
from pathlib import Path
from statistics import median

import pytest

from slurm.cluster import Cluster

LIMIT = 100e6
"""Bits per second of each link of the slow cluster in each direction."""

ATTEMPTS = 3
"""Allowed share of the rate: other load on the machine may make links slower, but never faster."""


@pytest.mark.slow
def test_the_bus_bandwidth_and_the_links_are_within_a_fifth_of_the_limit(
    slow: Cluster, tmp_path: Path, forked: dict[str, str]
) -> None:
    def measured() -> tuple[float, float]:
        doctor = ("python", "-m", "sage", "doctor", "--runs", str(tmp_path), "--json")
        facts = json.loads(slow.run("salloc", "--nodes=4", *doctor, env=forked, timeout=200).stdout)["facts"]
        buses = {facts[rank]["all_reduce"]["links"]["bits_per_second"] for rank in "0123"}
        links = [link["bits_per_second"] for rank in "0123" for link in facts[rank]["pairs"].values()]
        assert (len(buses), len(links)) == (1, 12)
        assert max(*buses, *links) < 1.2 * LIMIT
        return buses.pop(), median(links)

    assert any(min(measured()) > 0.8 * LIMIT for _ in range(ATTEMPTS))
