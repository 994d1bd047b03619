"""Tests of `make gpu-rehearsal`: it needs torch and few packages, and no section stops another."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

CHECKOUT = Path(__file__).parents[2]
ABSENT = [
    "accelerate",
    "click",
    "cloudpickle",
    "lightning",
    "matplotlib",
    "PIL",
    "rich",
    "spacy",
    "submitit",
    "tensorboard",
    "torchtext",
    "tqdm",
    "tyro",
    "xdist",
    "yaml",
]
"""Packages that the machine with a GPU does not need."""
BLOCK = f"""
from importlib.machinery import PathFinder

class Present:  # an object, as pytest keeps it in a class, where a function would become a method
    find = PathFinder.find_spec

    def __call__(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT!r} else self.find(name, path, target)

PathFinder.find_spec = Present()
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine without these packages."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(BLOCK)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site")}


def python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)


def test_the_rehearsal_passes_with_torch_and_little_else(bare: dict[str, str], tmp_path: Path) -> None:
    done = python(bare, "-m", "benchmarks.gpu", "--rehearsal", "--output", str(tmp_path / "out"))
    output: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    failed = [row for row in output["rows"] if row["status"] == "failed"]
    assert failed == [], failed
    assert done.returncode == 0, done.stderr
    sections = {"build", "ops", "reducers", "mounts", "speed", "steps"}
    assert {row["section"] for row in output["rows"]} == output["seconds"].keys() == sections
    table = (tmp_path / "out.md").read_text()
    assert table.count("\n| ") == len(output["rows"]) + 1


def test_the_section_ops_compares_every_op(bare: dict[str, str]) -> None:
    done = python(bare, "-c", "from benchmarks.gpu.ops_runs import uncalled; print(uncalled('cpu'))")
    assert done.stdout == "[]\n", done.stderr


def test_every_reducer_loads_with_torch_and_little_else(bare: dict[str, str]) -> None:
    code = "from sage import registry; [registry.load('reducers', n) for n in registry.names('reducers')]"
    done = python(bare, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_line_says_so() -> None:
    done = python({**os.environ}, "-m", "benchmarks.gpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("torch finds no GPU")


def test_the_packages_that_must_be_absent_are_absent(bare: dict[str, str]) -> None:
    assert python(bare, "-c", "import rich").returncode == 1


ENDS = """
import sys
from pathlib import Path
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.rows import read

path = Path(sys.argv[1])
gpu.guarded("no such section", path, 60, rehearsal=True)
gpu.guarded("steps", path, 0, rehearsal=True)
print(*dict.fromkeys(f"{row.section}: {row.status}" for row in read(path)), sep="\\n")
"""


def test_a_section_that_crashes_or_hangs_is_reported_and_does_not_stop_the_others(tmp_path: Path) -> None:
    # A process that is given a section that there is not ends with an error; one has a second at least, in
    # which no section ends: it imports torch, and takes steps of two models. A fast one may still write by
    # itself that its time is over.
    done = python({**os.environ}, "-c", ENDS, str(tmp_path / "rows"))
    assert done.stdout.splitlines()[-2:] == ["no such section: failed", "steps: cut off"], done.stderr
