"""Tests that `sage status`, `cancel` and `logs` work for readable runs and name the others."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from standin import StandIn

from sage.cli.main import main
from sage.jobs import local_process, scheduler, submissions
from sage.jobs.scheduler import Job, Unanswered
from sage.jobs.state import NOTHING, State, States
from sage.jobs.submissions import Entry

RUN = "digits-ff-topk-0123abcd"
JSON = [
    "",
    "{",
    "{}",
    "[]",
    "5",
    "null",
    '"x"',
    '{"steps": 1}',
    '{"format": 2}',
    '{"format": "x"}',
    "[" * 50000,
]
NAMES = ("result.json", "failure.json", "manifest.json", "config.json", "metrics.jsonl")


def entry(run: str = RUN, job: str = "7_3", **other: Any) -> Entry:
    return Entry(**{"run": run, "job": job, "cluster": "slurm", "logs": "nowhere", **other})


def one(state: str, job: str = "7_3") -> dict[str, Job]:
    return {job: Job(state=state, restarts=0, reason="", nodes="")}


def write_file(runs: Path, name: str, content: bytes) -> Path:
    folder = runs / RUN
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


def all_states(runs: Path) -> list[State]:
    submitted = entry(logs=str(runs))
    seen: list[dict[str, Job] | None] = [{}, None, one("RUNNING"), one("FAILED"), one("PENDING")]
    return [States(runs).of(RUN, each, queue) for queue in seen for each in (submitted, None)]


def assert_lines(states: list[State]) -> None:
    for state in states:
        for word in (state.step, state.metric, state.why):
            assert word == "" or word.isprintable(), word
            assert len(word) < 1000


# Files of a run.


@pytest.mark.parametrize("content", JSON, ids=[each[:12] or "empty" for each in JSON])
@pytest.mark.parametrize("name", NAMES)
def test_no_damaged_file_of_a_run_stops_sage_status(tmp_path: Path, name: str, content: str) -> None:
    write_file(tmp_path, name, content.encode())
    assert_lines(all_states(tmp_path))
    found = States(tmp_path).of(RUN, entry(), {})
    if name == "result.json":
        assert found.word == "damaged"
        assert found.why.startswith(f"{tmp_path / RUN / name}")
    else:
        assert found.word == "failed"
    if name == "failure.json":
        assert found.why.startswith(f"{tmp_path / RUN / name}")


LINES = ["5", "{}", '{"kind":"step"}', '{"kind":"epoch"}', '{"kind":"epoch","metrics":{}}', "[]", "null"]
LINES += ['{"kind":"epoch","metrics":{"a":"b"}}', '{"kind":"step","step":"x","epoch":[]}', '{"kind":7}']


def test_invalid_lines_do_not_hide_valid_records(tmp_path: Path) -> None:
    step = '{"kind": "step", "step": 4, "epoch": 0}'
    evaluation = '{"kind": "epoch", "metrics": {"accuracy": 0.5}}'
    write_file(tmp_path, "metrics.jsonl", "\n".join([step, evaluation, *LINES, ""]).encode())
    found = States(tmp_path).of(RUN, entry(), one("RUNNING"))
    assert found.step == "5"
    assert found.word == "running"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["kind", "step", "epoch", "metrics", "metric", "final", "steps", "error", "environment"]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(NAMES), st.binary(max_size=60) | VALUES.map(lambda each: json.dumps(each).encode())
    )
)
def test_any_files_of_a_run_give_a_state(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name in NAMES:
        (tmp_path / RUN / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_file(tmp_path, name, content)
    assert_lines(all_states(tmp_path))


@pytest.mark.parametrize("kind", ["folder", "fifo", "loop"])
@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_is_not_a_regular_file_is_named_and_does_not_hang(
    tmp_path: Path, name: str, kind: str
) -> None:
    path = write_file(tmp_path, name, b"") / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path)
    assert_lines(all_states(tmp_path))


def test_a_long_reason_is_truncated_and_cleaned(tmp_path: Path) -> None:
    write_file(tmp_path, "failure.json", json.dumps({"error": "\x1b[31m" + "x" * 140_000}).encode())
    assert_lines(all_states(tmp_path))


def test_status_names_the_damaged_run_and_shows_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_file(tmp_path, "result.json", b"")
    write_file(tmp_path, "config.json", b"{}")
    good = tmp_path / "digits-ff-exact-00000000"
    good.mkdir()
    (good / "config.json").write_text("{}")
    (good / "result.json").write_text('{"metric": "accuracy", "steps": 3, "final": {"accuracy": 1}}')
    link = tmp_path / "digits-ff-exact-link"
    link.symlink_to(good)
    assert main(["status", str(tmp_path)]) == 0
    table = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line for line in table}
    assert f"damaged {'':0}" in shown[RUN]
    assert f"{RUN}/result.json" in shown[RUN]
    assert " finished " in shown[good.name]
    assert " finished " in shown[link.name]
    assert table[-1] == "3 runs: 2 finished, 1 damaged"


@pytest.mark.parametrize("content", JSON, ids=[each[:12] or "empty" for each in JSON])
def test_damaged_notes_of_a_sweep_are_rewritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(f'runs = "{tmp_path}"\nworkload = "digits-ff"\nreducer = "exact"\n')
    submissions.prepare(tmp_path)
    (tmp_path / ".jobs" / "sweep.json").write_text(content)
    assert main(["status", str(sweep)]) == 0
    assert capsys.readouterr().out.endswith("1 runs: 1 missing\n")


# The queue.


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn(tmp_path / "slurm")
    names = [f"1_{task}" for task in range(8)]
    stand_in.jobs = {"1": {"options": {"job-name": "sage-sweep"}, "states": dict.fromkeys(names, "PENDING")}}
    monkeypatch.setenv("PATH", stand_in.path)
    return stand_in


@pytest.fixture
def runs(slurm: StandIn, tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    submissions.write(
        tmp_path / "runs",
        [
            entry(f"w-topk-{task:08x}", job, logs=str(tmp_path / "logs"))
            for task, job in enumerate(slurm.states)
        ],
    )
    return tmp_path / "runs"


def set_squeue_output(slurm: StandIn, *lines: str) -> None:
    """Make squeue print these lines, each field as wide as requested."""
    widths = list(scheduler.FIELDS.values())
    result = ["".join(f.ljust(w) for f, w in zip(line.split("|"), widths, strict=False)) for line in lines]
    (slurm.home / "told").write_text("\n".join(result) + "\n")
    (slurm.bin / "squeue").write_text(f"#!/bin/sh\ncat {slurm.home}/told\n")


def test_a_squeue_line_for_several_tasks_applies_to_each(slurm: StandIn) -> None:
    set_squeue_output(
        slurm,
        "12_[3-5%2]|CANCELLED|0|None|",
        "13_[0,2,8-10]|PENDING|0|Priority|",
        "14_[0-6:3%1]|PENDING|1|x|",
    )
    found = scheduler.queue({"0"})
    assert [job for job, each in found.items() if each.state == "CANCELLED"] == ["12_3", "12_4", "12_5"]
    assert [job for job in found if job.startswith("13")] == ["13_0", "13_2", "13_8", "13_9", "13_10"]
    assert [job for job in found if job.startswith("14")] == ["14_0", "14_3", "14_6"]


GARBAGE = [
    "slurm_load_jobs: hello",
    "12|running|0",
    "12|RUNNING|many",
    "x_1|RUNNING|0",
    "12_[1,...]|PENDING|0|a|b",
]
GARBAGE += [
    "12_[|PENDING|0",
    "12_[1-]|PENDING|0",
    "12_[0-99999999999]|PENDING|0",
    "-1|RUNNING|0",
    "\x1b[31m|A|0",
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_invalid_output_of_squeue_is_reported_and_nothing_is_cancelled(
    slurm: StandIn, runs: Path, capsys: pytest.CaptureFixture[str], garbage: str
) -> None:
    set_squeue_output(slurm, "1_0|RUNNING|0|None|node1", garbage)
    with pytest.raises(Unanswered, match="squeue printed a line that is not a job: '"):
        scheduler.queue({"0"})
    assert main(["cancel", "00000000", "--runs", str(runs)]) == 1
    assert capsys.readouterr().err.startswith("sage cancel: squeue printed a line that is not a job: ")
    assert slurm.calls("scancel") == []
    assert main(["status", str(runs)]) == 0
    assert "8 unknown, SLURM does not answer: squeue printed a line that is not" in capsys.readouterr().out


@settings(max_examples=examples(100))
@given(st.text(alphabet="0123456789_[]-,:%.xX", max_size=24))
def test_any_job_name_of_squeue_is_parsed_or_refused(name: str) -> None:
    for each in scheduler.tasks(name):
        assert submissions.JOB["slurm"].fullmatch(each) or each.startswith("0")


def test_watching_continues_after_invalid_output_of_squeue(
    slurm: StandIn, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_squeue_output(slurm, "1_[0-7]|FAILED|0|None|")
    # Invalid output at first.
    count = f"{slurm.home}/count"
    program = f"echo x >>{count}; [ $(wc -l <{count}) -gt 2 ] && exec cat {slurm.home}/told; echo hello"
    (slurm.bin / "squeue").write_text(f"#!/bin/sh\n{program}\n")
    monkeypatch.setattr(scheduler, "SHORTEST", 0.0)
    monkeypatch.setattr(scheduler, "LONGEST", 0.0)
    assert main(["status", str(runs), "--watch"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("8 runs: 8 unknown, SLURM does not answer: squeue printed a line")
    assert last == "8 runs: 8 failed"


def test_cancelled_pending_tasks_are_shown_although_slurm_keeps_no_record(
    slurm: StandIn, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.set("RUNNING", "1_0")
    assert main(["cancel", "00000003", "00000004", "--runs", str(runs)]) == 0
    slurm.set("GONE", "1_3", "1_4")
    slurm.set("GONE", "1_5")  # like scancel itself
    capsys.readouterr()
    assert main(["status", str(runs)]) == 0
    table = capsys.readouterr().out
    assert table.count(" failed ") == 3
    assert table.count(" cancelled") == 3
    slurm.set("GONE", *slurm.states)
    assert (
        States(runs).of("w-topk-00000003", submissions.read(runs)["w-topk-00000003"], {}).why == "cancelled"
    )
    assert States(runs).of("w-topk-00000006", submissions.read(runs)["w-topk-00000006"], {}).why == NOTHING


# Jobs of this machine.


def test_a_process_is_identified_independently_of_the_clock(tmp_path: Path) -> None:
    mine = entry(job=str(os.getpid()), cluster="local", started=local_process.identity(os.getpid()))
    for time in ("1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", "", "yesterday"):
        assert local_process.alive(replace(mine, time=time))
    assert not local_process.alive(replace(mine, started="another-boot/" + mine.started.partition("/")[2]))
    assert not local_process.alive(replace(mine, job="1"))
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        ended = entry(job=str(child.pid), cluster="local", started=local_process.identity(child.pid))
    assert not local_process.alive(ended)


# Words.


def test_the_error_for_logs_of_an_unknown_run_names_the_folder_and_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    assert main(["logs", "abc", "--runs", str(tmp_path / "empty")]) == 2
    message = f"no run was submitted to {tmp_path / 'empty'}; give another runs folder by --runs"
    assert capsys.readouterr().err == f"sage logs: {message}\n"
    assert main(["logs", "abc", "--runs", str(runs)]) == 2
    assert f"(in {runs}; give another runs folder by --runs)" in capsys.readouterr().err


def test_a_log_is_printed_in_full_and_a_path_that_is_no_log_is_an_error(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "1_0_0_log.out"
    log.write_bytes(b"first \xff attempt\n" + b"x" * 3_000_000 + b"\nsecond\n")
    assert main(["logs", "00000000", "--runs", str(runs)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("first \ufffd attempt\n")
    assert output.endswith("x\nsecond\n")
    log.unlink()
    os.mkfifo(log)
    assert main(["logs", "00000000", "--runs", str(runs)]) == 2
    assert f"sage logs: {log} is not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["status"], ["cancel", "x"], ["logs", "x"]])
def test_an_unreadable_submission_log_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    (tmp_path / ".jobs" / "submitted.jsonl").mkdir(parents=True)
    status = main([*verb, "--runs", str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"sage {verb[0]}: {tmp_path}/.jobs/submitted.jsonl is a folder, not a regular file"
    )
    assert status == (0 if verb == ["status"] else 2)
