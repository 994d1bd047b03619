"""Tests of what each command imports: commands that only read and print do not import torch."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "numpy", "rich", "submitit", "asyncio", "logging", "ssl", "multiprocessing", "tensorboard"}
"""Modules that take longer to import than the rest of a command that only reads and prints."""

SWEEP = """
workload = "digits-ff"
reducer = ["exact", "topk", "topk+onebit", "adacomp+efsign"]
seed = [0, 1]
"""


def imported(folder: Path, *argv: str) -> set[str]:
    """Run a command without a terminal, and return the names of all modules that it has imported."""
    code = (
        "import sys; from sage.cli.main import main; status = main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], check=True, capture_output=True, text=True, cwd=folder
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a sweep and an empty runs folder."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "without"),
    [
        (["--help"], {"sage.config", "sage.registry", "sage.storage", "sage.jobs", "importlib.metadata"}),
        (["bench", "--help"], {"sage.config", "sage.registry", "sage.storage", "sage.bench"}),
        (["list"], {"sage.config", "sage.storage", "sage.jobs"}),
        (["list", "--json"], {"sage.config", "sage.storage", "sage.jobs"}),
        (["data", "list"], {"sage.config", "sage.storage", "sage.jobs"}),
        (["status", "runs"], {"sage.config", "sage.registry", "sage.cluster.remote", "hashlib", "shutil"}),
        (["status", "runs", "--json"], {"sage.config", "sage.registry", "sage.cluster.remote", "hashlib"}),
        (["status", "sweep.toml"], {"sage.cluster.remote"}),
        (["published"], {"sage.jobs"}),
        (["published", "sage", "--all", "--json"], {"sage.jobs"}),
        (["logs", "--help"], {"sage.config", "sage.registry", "sage.jobs"}),
        (["cancel", "--help"], {"sage.config", "sage.registry", "sage.jobs"}),
        (["run", "--help"], set()),
        (["submit", "--help"], set()),
        (["calibrate", "--help"], set()),
        (["advise", "--help"], set()),
        (["predict", "--help"], {"sage.config", "sage.registry", "sage.storage", "sage.predict"}),
        (["conform", "topk", "--help"], {"sage.config"}),
        (["run", "--reducer", "topk+onebit", "--help"], set()),
    ],
    ids=lambda given: " ".join(sorted(given) if isinstance(given, set) else given),
)
def test_a_command_that_reads_and_prints_does_not_import(
    folder: Path, argv: list[str], without: set[str]
) -> None:
    assert not (HEAVY | without) & imported(folder, *argv)


def test_the_engine_does_not_import_what_shards_models() -> None:
    code = (
        "import sys, torch.nn.parallel.distributed; before = {*sys.modules}; "  # torch 2.8 imports FSDP
        "import sage.train.run, sage.mount.ddp, sage.mount.whole; print(*{*sys.modules} - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"torch.distributed.fsdp", "torch.distributed.tensor"} & set(done.stdout.split())


def test_the_states_of_runs_that_have_ended_are_read_without_the_configuration(folder: Path) -> None:
    run = folder / "runs" / "digits-ff-exact-0123456789"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "result.json").write_text("{}")  # damaged, as the table shows
    assert not (HEAVY | {"sage.config", "sage.registry"}) & imported(folder, "status", "runs")
