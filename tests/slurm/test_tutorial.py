"""Tests that the commands of docs/tutorials/slurm-sweep.md that need SLURM run unchanged."""

import os
import re
from pathlib import Path

import pytest

from slurm.cluster import Cluster

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "slurm-sweep.md"


def commands() -> list[str]:
    """Return the lines of the page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def test_the_commands_before_the_sweep_run_unchanged(cluster: Cluster, tmp_path: Path) -> None:
    lines = commands()
    (partitions,) = (line for line in lines if line.startswith("sinfo "))
    (accounts,) = (line for line in lines if line.startswith("sacctmgr "))
    (check,) = (line for line in lines if line.startswith("salloc "))
    environ = {"USER": "root", "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}

    printed = cluster.run("bash", "-c", partitions, cwd=tmp_path, env=environ).stdout
    assert printed.split()[0] == "PARTITION"
    assert {line.split()[0].rstrip("*") for line in printed.splitlines()[1:]} == {"debug", "low", "high"}

    # This cluster keeps no accounting records; the page mentions such clusters.
    output = cluster.run("bash", "-c", accounts, cwd=tmp_path, env=environ, check=False)
    assert output.returncode != 0
    assert "accounting" in output.stderr

    (tmp_path / "runs").mkdir()
    done = cluster.run("bash", "-c", check, cwd=tmp_path, env=environ, timeout=200)
    assert "ranks: 2\n" in done.stdout
    assert done.stdout.endswith("\nno checks failed\n")
    assert os.listdir(tmp_path / "runs") == []
