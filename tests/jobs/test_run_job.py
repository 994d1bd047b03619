"""Tests that the exit status of a run's task makes each executor start it again or not."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from launcher import PATIENCE, outside
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

import sage.train.run
from sage.config import Config, load, resolve
from sage.jobs.local_process import STOP
from sage.jobs.run_job import RunJob

CHECKOUT = Path(__file__).parents[2]
RESULT = {"metric": "accuracy", "final": {"accuracy": 0.9}, "steps": 7}

TORCH = """
import os, signal, time
os.kill(os.getpid(), signal.SIGUSR2)
time.sleep(99)
"""
"""Replaces torch: a signal arrives during its import."""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Execute a run as a job of a cluster, with a made-up outcome of `sage run`."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    config = replace(resolve(load("digits-ff")), runs=tmp_path / "runs")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    monkeypatch.setenv("SAGE_OUTCOME", str(tmp_path / "outcome"))

    def run(cluster: str, *comes_to: int | ValueError) -> Any:
        outcomes = iter(comes_to)

        def main(given: Config) -> int:
            assert given == config
            if isinstance(outcome := next(outcomes), ValueError):
                raise outcome
            if outcome == 0:
                config.folder.mkdir(parents=True, exist_ok=True)
                (config.folder / "result.json").write_text(json.dumps(RESULT))
            return outcome

        monkeypatch.setattr(sage.train.run, "main", main)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
        cell = RunJob(config, max_requeues=2)
        if cluster == "debug":
            monkeypatch.setenv("SUBMITIT_DEBUG_JOB_ID", "1")
        else:
            monkeypatch.setenv("SUBMITIT_EXECUTOR", cluster)
            monkeypatch.setenv("SLURM_JOB_ID" if cluster == "slurm" else "SUBMITIT_LOCAL_JOB_ID", "12")
            # Like submitit's local executor.
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        try:
            return cell()
        except SystemExit as end:
            return end.code
        finally:
            assert next(outcomes, None) is None

    yield run
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_finished_run_returns_its_result(job: Callable[..., Any]) -> None:
    for cluster in ("slurm", "local", "debug"):
        assert job(cluster, 0)["steps"] == 7


def test_under_slurm_the_batch_script_gets_every_other_status(
    job: Callable[..., Any], tmp_path: Path
) -> None:
    for status in (1, 2, 75):
        assert job("slurm", status) == status
    assert not (tmp_path / "outcome").exists()
    assert job("slurm", ValueError("no such\n data")) == 2
    assert (tmp_path / "outcome").read_text() == "2 no such data\n"


def test_a_local_run_is_restarted_after_a_failure_that_may_not_happen_again(
    job: Callable[..., Any], tmp_path: Path
) -> None:
    assert job("local", 1, 1, 0)["steps"] == 7
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,4"
    assert job("local", 1, 1, 1) == 1
    assert job("local", 2) == 2
    assert job("local", 75) == LOCAL_REQUEUE_RETURN_CODE
    (tmp_path / f"12_{STOP}").touch()
    assert job("local", 75) == 75


def test_a_run_in_this_process_raises_no_exception(job: Callable[..., Any]) -> None:
    assert job("debug", 1) == {"status": 1}
    assert job("debug", ValueError("no")) == {"status": 2}


def test_a_signal_before_training_ends_a_task_at_once_as_stopped(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    code = (
        "from sage.config import Config; from sage.jobs.run_job import RunJob; c = RunJob.__new__(RunJob); "
    )
    code += "c.config, c.max_requeues = {}, 0; c()"
    search = os.pathsep.join([str(tmp_path), str(CHECKOUT)])
    environment = {**outside(), "PYTHONPATH": search, "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "12"}
    environment["SAGE_OUTCOME"] = str(tmp_path / "outcome")
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=PATIENCE, check=False)
    assert done.returncode == 75
    assert (tmp_path / "outcome").read_text() == "75 stopped by SIGUSR2 before it began\n"
