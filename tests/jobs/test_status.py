"""Tests of the states of runs, whatever SLURM answers, with few calls of squeue."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call
from launcher import outside
from standin import StandIn

from sage import registry
from sage.jobs import scheduler, submissions
from sage.jobs.scheduler import ENDED, LONGEST, SHORTEST, Job, QueuePoller, Unanswered
from sage.jobs.state import NOTHING, State, States
from sage.jobs.submissions import Entry
from sage.storage import write_json

CHECKOUT = Path(__file__).parents[2]
RUN = "digits-ff-topk-0123abcd"


def entry(run: str = RUN, job: str = "7_3", **other: Any) -> Entry:
    return Entry(**{"run": run, "job": job, "cluster": "slurm", "logs": "nowhere", **other})


def queue(state: str, job: str = "7_3", restarts: int = 0, reason: str = "Priority") -> dict[str, Job]:
    return {job: Job(state=state, restarts=restarts, reason=reason, nodes="")}


def steps(folder: Path, count: int) -> None:
    """The record of a running run."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [
        {"kind": "step", "step": step, "epoch": step // 10, "loss": 1.0} for step in range(count)
    ]
    lines.insert(
        -1, {"kind": "epoch", "epoch": 1.0, "step": count, "metrics": {"accuracy": 0.5, "loss": 1.0}}
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "st')


def finish(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", {"metric": "hit_rate", "final": {"hit_rate": 0.75}, "steps": 40})


def config(**settings: Any) -> str:
    """Content of config.json."""
    return json.dumps({"workload": "digits-ff", "reducer": "topk", **settings})


def manifest(**environment: str) -> str:
    """Content of manifest.json for a machine with few known facts."""
    machine: dict[str, Any] = {
        "hostname": "node1",
        "os": "Linux",
        "cpu": "",
        "cores": None,
        "memory_bytes": 0,
        "gpus": [],
    }
    git = {"commit": None, "dirty": None}
    return json.dumps({"versions": {}, "machine": machine, "git": git, "environment": environment})


# The state of a run.


def test_a_run_that_was_never_submitted_is_missing(tmp_path: Path) -> None:
    assert States(tmp_path).of(RUN, None, {}) == State(word="missing")
    steps(tmp_path / RUN, 12)
    assert States(tmp_path).of(RUN, None, {}) == State(word="missing", step="12", metric="accuracy 0.5")


def test_a_pending_run_shows_its_reason_and_its_number_of_requeues(tmp_path: Path) -> None:
    steps(tmp_path / RUN, 12)
    found = States(tmp_path).of(RUN, entry(), queue("PENDING", restarts=2, reason="BeginTime"))
    assert found == State(word="pending", job="7_3", why="BeginTime", requeued=2)


def test_a_running_run_shows_its_progress(tmp_path: Path) -> None:
    states = States(tmp_path)
    assert states.of(RUN, entry(), queue("RUNNING")) == State(word="running", job="7_3")
    steps(tmp_path / RUN, 12)
    (tmp_path / RUN / "config.json").write_text(config(steps=None, epochs=3.5))
    found = states.of(RUN, entry(), queue("COMPLETING"))
    assert found == State(word="running", job="7_3", step="12, epoch 2 of 3.5", metric="accuracy 0.5")
    (tmp_path / RUN / "config.json").write_text(config(steps=40, epochs=3.5))
    assert states.of(RUN, entry(), queue("RUNNING")).step == "12 of 40"


def test_a_run_with_a_result_is_finished_whatever_the_queue_contains(tmp_path: Path) -> None:
    finish(tmp_path / RUN)
    (tmp_path / RUN / "manifest.json").write_text(manifest(SLURM_RESTART_COUNT="2"))
    done = State(word="finished", job="7_3", step="40", metric="hit rate 0.75", requeued=2)
    for seen in (*({} if state == "GONE" else queue(state) for state in (*ENDED, "GONE")), None):
        assert States(tmp_path).of(RUN, entry(), seen) == done
    assert States(tmp_path).of(RUN, None, {}).word == "finished"


def test_a_run_that_ended_without_a_result_has_failed_with_a_reason(tmp_path: Path) -> None:
    states, submitted = States(tmp_path), entry(logs=str(tmp_path))
    assert states.of(RUN, submitted, queue("CANCELLED")).why == "cancelled"
    for seen in ({}, queue("FAILED"), queue("NODE_FAIL")):
        assert states.of(RUN, submitted, seen) == State(word="failed", job="7_3", why=NOTHING)
    log = "Traceback\n  MemoryError: 7\n\nsrun: error: node1: task 0: Exited with exit code 1\n\n"
    submitted.log(0).write_text(log)
    assert states.of(RUN, submitted, {}).why == "MemoryError: 7"
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / "failure.json").write_text('{"error": "rank 2: no\\n such data", "status": 2}')
    assert states.of(RUN, submitted, {}).why == "rank 2: no such data"


def test_a_run_is_unknown_and_not_failed_if_slurm_does_not_answer(tmp_path: Path) -> None:
    assert States(tmp_path).of(RUN, entry(), None).word == "unknown"


def test_a_local_run_is_active_only_while_its_recorded_process_is_alive(tmp_path: Path) -> None:
    mine = entry(job=str(os.getpid()), cluster="local")
    assert States(tmp_path).of(RUN, mine, {}).word == "running"
    # A process that started after the entry was written may have the same id by chance.
    assert States(tmp_path).of(RUN, replace(mine, time="2020-01-01T00:00:00+00:00"), {}).word == "failed"
    assert States(tmp_path).of(RUN, replace(mine, host="elsewhere"), {}).word == "failed"
    with subprocess.Popen(["true"]) as ended:
        pass
    assert States(tmp_path).of(RUN, replace(mine, job=str(ended.pid)), {}).word == "failed"


@pytest.mark.parametrize("name", registry.names("tasks"))
def test_an_evaluation_lists_its_headline_metric_first(name: str) -> None:
    made: Any = registry.load("tasks", name)
    task = made(dict.fromkeys(made.needs, 0.5))
    assert next(iter(task.metrics(torch.ones(len(task.sum_names))))) == task.metric


def test_only_the_end_of_a_record_is_read(tmp_path: Path) -> None:
    steps(tmp_path / RUN, 12)
    path = tmp_path / RUN / "metrics.jsonl"
    result = path.read_bytes()
    with path.open("wb") as file:
        file.truncate(2**40)  # a sparse file: it needs no space on the disk, but would in memory
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + result)
    assert States(tmp_path).of(RUN, entry(), queue("RUNNING")).step == "12"


# The queue.


class Clock:
    """A clock that the test advances."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_queue_is_polled_less_often_while_nothing_changes_or_slurm_does_not_answer() -> None:
    clock, calls = Clock(), []
    answers: Callable[[], dict[str, Job]] = lambda: queue("PENDING")  # noqa: E731

    def ask() -> dict[str, Job]:
        calls.append(clock.now)
        return answers()

    watch = QueuePoller(ask, clock)

    def until(end: float) -> list[float]:
        first = len(calls)
        while clock.now < end:
            watch.poll()
            clock.now += 0.25
        return calls[first:]

    assert until(200) == [0, 2, 6, 14, 30, 62, 122, 182]
    answers = lambda: queue("RUNNING")  # noqa: E731
    assert until(250) == [242, 244, 248]

    def silent() -> dict[str, Job]:
        raise Unanswered("squeue did not answer")

    answers = silent
    assert until(400) == [256, 272, 304, 364]
    assert watch.jobs == queue("RUNNING")
    assert watch.error == "squeue did not answer"
    answers = lambda: queue("FAILED")  # noqa: E731
    assert until(430) == [424, 426]
    assert watch.jobs == queue("FAILED")
    assert watch.error == ""
    assert (SHORTEST, LONGEST) == (2, 60)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Arrays 1 (of six tasks) and 2 (of three), and job 3."""
    stand_in = StandIn(tmp_path / "slurm")
    options = {"job-name": "sage-sweep"}
    tasks = (["1_0", "1_1", "1_2", "1_3", "1_4", "1_5"], ["2_0", "2_1", "2_2"], ["3"])
    stand_in.jobs = {
        str(number): {"options": options, "states": dict.fromkeys(names, "PENDING")}
        for number, names in enumerate(tasks, start=1)
    }
    monkeypatch.setenv("PATH", stand_in.path)
    return stand_in


@pytest.fixture
def runs(slurm: StandIn, tmp_path: Path) -> Path:
    """A runs folder whose submission log has each task of the replaced SLURM, for its own run."""
    entries = [
        entry(f"w-topk-{number:08x}", job, logs=str(tmp_path)) for number, job in enumerate(slurm.states)
    ]
    submissions.write(tmp_path / "runs", entries)
    return tmp_path / "runs"


def test_one_call_of_squeue_returns_all_jobs(slurm: StandIn) -> None:
    slurm.set("OUT_OF_MEMORY", "1_5")
    slurm.set("RUNNING", "3")
    slurm.set("GONE", "2_0")
    found = scheduler.queue({"0"})
    assert {job: seen.state for job, seen in found.items()} == {
        job: state for job, state in slurm.states.items() if state != "GONE"
    }
    assert found["3"].active
    assert not found["1_5"].active
    assert len(slurm.calls("squeue")) == 1


def test_a_call_that_hangs_or_fails_counts_as_no_answer(
    slurm: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (slurm.bin / "squeue").write_text("#!/bin/sh\nexec sleep 1000\n")
    monkeypatch.setattr(scheduler, "TIMEOUT", 0.2)
    with pytest.raises(Unanswered, match="squeue did not answer within 0.2 s"):
        scheduler.queue({"0"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unanswered, match="there is no squeue on this machine"):
        scheduler.queue({"0"})


# The commands.


def test_status_shows_each_run_and_a_summary(
    slurm: StandIn, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.set("RUNNING", "1_0", "1_1")
    slurm.set("FAILED", "1_2")
    finish(runs / "w-topk-00000003")
    slurm.set("COMPLETED", "1_3")
    steps(runs / "w-topk-00000001", 12)
    steps(runs / "w-exact-by-hand", 3)
    (runs / "w-exact-by-hand" / "config.json").write_text(config(steps=9))
    assert call("status", str(runs)) == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert table["w-topk-00000000"] == "1_0 running"
    assert table["w-topk-00000001"] == "1_1 running 12 accuracy 0.5"
    assert table["w-topk-00000002"] == "1_2 failed left no result, error or log"
    assert table["w-topk-00000003"] == "1_3 finished 40 hit rate 0.75"
    assert table["w-topk-00000009"] == "3 pending Priority"
    assert table["w-exact-by-hand"] == "missing 3 of 9 accuracy 0.5"
    assert summary == "11 runs: 1 missing, 6 pending, 2 running, 1 finished, 1 failed"
    assert len(slurm.calls("squeue")) == 1


def test_watching_ends_when_no_run_is_active(
    slurm: StandIn, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end_all(seconds: float) -> None:
        slurm.set("FAILED", *slurm.states)
        sleep(min(seconds, 0.1))

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", end_all)
    assert call("status", str(runs), "--watch") == 0
    assert capsys.readouterr().out.splitlines() == ["10 runs: 10 pending", "10 runs: 10 failed"]


def test_runs_are_cancelled_in_one_call_grouped_by_array(
    slurm: StandIn, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.set("FAILED", "1_2")
    names = list(submissions.read(runs))
    assert call("cancel", names[5], "--runs", str(runs)) == 0
    assert slurm.calls("scancel") == [["1_[5]"]]
    by_hash = [name.rpartition("-")[2] for name in names]
    assert call("cancel", *by_hash, "--runs", str(runs)) == 0
    assert "cancelled: 8 runs" in capsys.readouterr().out
    assert slurm.calls("scancel")[1:] == [["1_[0-1,3-4]", "2_[0-2]", "3"]]
    assert set(slurm.states.values()) == {"CANCELLED", "FAILED"}
    assert call("cancel", names[5], "--runs", str(runs)) == 0
    assert len(slurm.calls("scancel")) == 2


def test_nothing_is_cancelled_if_the_active_jobs_are_unknown(
    slurm: StandIn, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.fail("squeue", "squeue: error: Unable to contact slurm controller")
    assert call("cancel", "00000000", "--runs", str(runs)) == 1
    assert "sage cancel: squeue ended with 1: squeue: error: Unable" in capsys.readouterr().err
    assert slurm.calls("scancel") == []


def test_a_run_is_selected_by_a_prefix_of_its_name_or_hash(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1_0_0_log.out").write_text("rank 0 speaks\n")
    (tmp_path / "1_0_1_log.out").write_text("rank 1 speaks\n")
    for called in ("w-topk-00000000", "00000000"):
        assert call("logs", called, "--runs", str(runs)) == 0
        assert capsys.readouterr().out == "rank 0 speaks\n"
    assert call("logs", "00000000", "--rank", "1", "--runs", str(runs)) == 0
    assert capsys.readouterr().out == "rank 1 speaks\n"
    with pytest.raises(ValueError, match="'w-topk' matches 10 runs: w-topk-00000000, w-topk-00000001"):
        call("logs", "w-topk", "--runs", str(runs))
    with pytest.raises(ValueError, match="no submitted run is called 'x'"):
        call("logs", "x", "--runs", str(runs))
    with pytest.raises(ValueError, match="rank 5 of .* has no log in .*; ranks with a log: 0, 1"):
        call("logs", "00000000", "--rank", "5", "--runs", str(runs))
    with pytest.raises(ValueError, match="rank 0 of .* has no log in .*; its job has not started"):
        call("logs", "00000001", "--runs", str(runs))


def test_sage_status_does_not_import_torch(runs: Path, slurm: StandIn) -> None:
    code = "import sys; from sage.cli.main import main; main(['status', *sys.argv[1:]])"
    code += "; assert 'torch' not in sys.modules"
    environment = {**outside(), "PATH": slurm.path, "PYTHONPATH": str(CHECKOUT)}
    subprocess.run([sys.executable, "-c", code, str(runs)], env=environment, check=True)
