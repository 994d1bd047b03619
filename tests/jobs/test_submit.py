"""Tests that a sweep is submitted in few arrays, each run once, and later only the missing runs."""

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from commands import call as run_command
from standin import StandIn
from submitit.core.utils import DelayedSubmission

from sage.config import Config
from sage.jobs import arrays, submissions
from sage.jobs.run_job import RunJob
from sage.jobs.scheduler import SHORTEST
from sage.jobs.status_view import REFRESH, StatusView
from sage.jobs.submissions import Entry
from sage.jobs.sweep import noted, read

CHECKOUT = Path(__file__).parents[2]
SWEEP = 'workload = "digits-ff"\nreducer = ["exact", "topk"]\nseed = [0, 1, 2]\ndevice = "cpu"\n'
LARGE_SWEEP = f"""
workload = "digits-ff"
reducer = "topk"
seed = {list(range(50))}
lr = {[step / 10 for step in range(1, 11)]}

[reducers.topk]
density = [0.5, 0.25, 0.1, 0.05, 0.01]
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A replaced SLURM that accepts arrays of up to four tasks."""
    stand_in = StandIn(tmp_path / "slurm", max_array_size=4)
    monkeypatch.setenv("PATH", stand_in.path)
    monkeypatch.setattr(arrays, "PAUSES", (0.0, 0.0))
    return stand_in


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(f'runs = "{tmp_path / "runs"}"\n{SWEEP}')
    return path


def call(path: Path, *options: str) -> int:
    return run_command("submit", str(path), *options)


def finish(path: Path, *cells: str) -> None:
    """Write the results of these runs of a sweep, or of all."""
    for cell in read(path).configs:
        if not cells or cell.folder.name in cells:
            leave_result(cell.folder)


def leave_result(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text('{"metric": "accuracy", "final": {"accuracy": 1.0}, "steps": 1}')


def recorded(path: Path) -> dict[str, Entry]:
    return submissions.read(read(path).runs)


def submitted(entry: Entry) -> Config:
    """Return the configuration that submitit loads for a job."""
    cell = DelayedSubmission.load(Path(entry.logs) / f"{entry.job}_submitted.pkl").function
    assert isinstance(cell, RunJob)
    return Config.from_dict(cell.config)


# Under SLURM.


def test_runs_are_split_into_arrays_that_slurm_accepts(slurm: StandIn, sweep: Path) -> None:
    assert call(sweep) == 0
    assert [job["options"]["array"] for job in slurm.jobs.values()] == ["0-3%4", "0-1%2"]
    entries = recorded(sweep)
    assert list(entries) == [cell.folder.name for cell in read(sweep).configs]
    assert [entry.job for entry in entries.values()] == list(slurm.states)
    for name, entry in entries.items():
        assert submitted(entry).folder == (sweep.parent / "runs" / name).resolve()


def test_a_single_run_is_not_submitted_as_an_array(slurm: StandIn, sweep: Path) -> None:
    one, *others = [cell.folder.name for cell in read(sweep).configs]
    finish(sweep, *others)
    assert call(sweep) == 0
    assert list(slurm.states) == ["1"]
    assert submitted(recorded(sweep)[one]).folder.name == one


def test_the_batch_script_is_submitits_with_the_functions_of_batch_sh(slurm: StandIn, sweep: Path) -> None:
    table = '[slurm]\npartition = "low"\ncpus_per_task = 3\ntime = "1:30:00"\nexclusive = true\nmem = "4G"\n'
    sweep.write_text(
        sweep.read_text() + "world_size = 4\nmax_requeues = 5\n" + table + "ntasks-per-node = 2\n"
    )
    assert call(sweep) == 0
    job = slurm.jobs["1"]
    wanted = {"nodes": "2", "ntasks-per-node": "2", "partition": "low", "cpus-per-task": "3", "mem": "4G"}
    wanted |= {"time": "1:30:00", "exclusive": "", "requeue": "", "job-name": "sage-sweep"}
    wanted |= {"signal": "USR2@120", "open-mode": "append"}
    assert wanted.items() <= job["options"].items()
    assert not {"gpus-per-node", "error", "wckey"} & set(job["options"])
    lines = job["script"].splitlines()
    assert f"source {CHECKOUT / 'jobs' / 'batch.sh'}" in lines
    assert {"export max_requeues=5", f"export PYTHONPATH={CHECKOUT}"} <= {
        line.partition(":")[0] for line in lines
    }
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "--kill-on-bad-exit=1 --distribution=block --open-mode=append --cpus-per-task=3 " in srun
    assert lines[-1] == "sage_finish $?"
    subprocess.run(["bash", "-n"], input=job["script"], text=True, check=True)


def test_runs_with_different_resources_are_in_different_arrays(slurm: StandIn, sweep: Path) -> None:
    sweep.write_text(sweep.read_text().replace("[0, 1, 2]", "0") + "world_size = [2, 4]\n")
    assert call(sweep) == 0
    assert [(job["options"]["nodes"], len(job["states"])) for job in slurm.jobs.values()] == [
        ("2", 2),
        ("4", 2),
    ]


def test_a_second_submission_submits_only_runs_that_are_neither_finished_nor_active(
    slurm: StandIn, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(sweep) == 0
    assert call(sweep) == 0
    assert "6 runs: 0 finished, 6 active, 0 to submit" in capsys.readouterr().out
    jobs = {entry.job: name for name, entry in recorded(sweep).items()}
    slurm.set("COMPLETED", "1_0", "1_1", "1_2")
    slurm.set("FAILED", "1_3")
    slurm.set("GONE", "2_0")
    finish(sweep, jobs["1_0"], jobs["1_1"])
    assert call(sweep) == 0
    assert "6 runs: 2 finished, 1 active, 3 to submit" in capsys.readouterr().out
    again = [jobs["1_2"], jobs["1_3"], jobs["2_0"]]
    assert sorted(name for name, entry in recorded(sweep).items() if entry.job.startswith("3_")) == sorted(
        again
    )
    finish(sweep)
    assert call(sweep) == 0
    assert len(slurm.jobs) == 3
    (read(sweep).configs[4].folder / "result.json").unlink()
    slurm.set("GONE", *slurm.states)
    assert call(sweep) == 0
    assert list(slurm.jobs["4"]["states"]) == ["4"]
    assert recorded(sweep)[read(sweep).configs[4].folder.name].job == "4"
    assert len(slurm.calls("squeue")) <= 5
    assert len(slurm.calls("sbatch")) == 4


def test_parallel_limits_all_arrays_and_the_active_jobs_together(slurm: StandIn, sweep: Path) -> None:
    assert call(sweep, "--parallel", "2") == 0
    first, second = (slurm.jobs[job]["options"] for job in ("1", "2"))
    assert (first["array"], first.get("dependency")) == ("0-3%2", None)
    assert (second["array"], second.get("dependency")) == ("0-1%2", "afterany:1")
    slurm.set("FAILED", "1_0")
    table = '[slurm]\ndependency = "afterok:77"\n'
    sweep.write_text(sweep.read_text() + table)
    assert call(sweep, "--parallel", "2") == 0
    assert slurm.jobs["3"]["options"]["dependency"] == "afterok:77,afterany:1:2"


def test_a_dry_run_prints_everything_and_writes_nothing(
    slurm: StandIn, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(sweep, "--dry-run") == 0
    output = capsys.readouterr().out
    for cell in read(sweep).configs:
        assert f"{cell.folder.name}  seed {cell.seed}\n" in output
    assert "# sbatch, 4 runs, 2 nodes × 1 task each\n#!/bin/bash\n" in output
    assert "#SBATCH --array=0-1%2\n" in output
    assert not (sweep.parent / "runs").exists()
    assert slurm.calls("sbatch") == []


TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


@pytest.mark.parametrize(("accepted", "jobs"), [("", ["1", "2"]), ("accepted, but ", ["1", "2", "3"])])
def test_sbatch_is_called_again_without_an_answer_and_no_run_is_submitted_twice(
    slurm: StandIn, sweep: Path, accepted: str, jobs: list[str]
) -> None:
    slurm.fail("sbatch", accepted + TIMED_OUT)
    assert call(sweep) == 0
    assert list(slurm.jobs) == jobs
    waiting = [task for task, state in slurm.states.items() if state == "PENDING"]
    assert [entry.job for entry in recorded(sweep).values()] == waiting
    assert len(waiting) == 6


def test_arrays_submitted_before_a_refusal_stay_recorded(slurm: StandIn, sweep: Path) -> None:
    slurm.fail("sbatch", "", "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy")
    with pytest.raises(ValueError, match="SLURM refuses the job: .*Job violates accounting/QOS policy"):
        call(sweep)
    assert [entry.job for entry in recorded(sweep).values()] == ["1_0", "1_1", "1_2", "1_3"]


def test_arrays_submitted_before_slurm_stopped_answering_stay_recorded(
    slurm: StandIn, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.fail("sbatch", "", TIMED_OUT, TIMED_OUT)
    assert call(sweep) == 1
    assert "sbatch got no answer 2 times" in capsys.readouterr().err
    assert len(recorded(sweep)) == 4
    assert call(sweep) == 0
    assert [entry.job for entry in recorded(sweep).values()] == ["1_0", "1_1", "1_2", "1_3", "2_0", "2_1"]


def test_nothing_is_submitted_if_the_active_jobs_are_unknown(
    slurm: StandIn, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(sweep) == 0
    slurm.fail("squeue", "squeue: error: Unable to contact slurm controller (connect failure)")
    assert call(sweep) == 1
    assert "squeue ended with 1: squeue: error: Unable to contact" in capsys.readouterr().err
    assert len(slurm.calls("sbatch")) == 2


def test_without_slurm_the_error_names_the_other_clusters(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no sbatch on this machine.*--cluster local .*--cluster debug"):
        call(sweep)


def test_a_sweep_is_submitted_by_one_process_at_a_time(slurm: StandIn, sweep: Path) -> None:
    with (
        submissions.lock_sweep(sweep.parent / "runs", "sweep"),
        pytest.raises(ValueError, match="the sweep sweep is being submitted to .* by another process"),
    ):
        call(sweep)


def test_an_incomplete_line_damages_neither_the_log_nor_the_next_line(tmp_path: Path) -> None:
    one, two = (Entry(run=name, job="1", cluster="local", logs="") for name in ("one", "two"))
    submissions.write(tmp_path, [one])
    with (tmp_path / ".jobs" / "submitted.jsonl").open("a") as file:
        file.write('{"cell": "torn')
    assert submissions.read(tmp_path) == {"one": one}
    submissions.write(tmp_path, [two])
    assert submissions.read(tmp_path) == {"one": one, "two": two}


# 2,500 runs.


class Clock:
    """A clock that the test advances."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.slow
def test_2500_runs_are_submitted_once_and_watched_with_one_call_per_interval(
    slurm: StandIn, tmp_path: Path
) -> None:
    (slurm.home / "max_array_size").write_text("1001")
    path, runs = tmp_path / "sweep.toml", tmp_path / "runs"
    path.write_text(f'runs = "{runs}"\n{LARGE_SWEEP}')
    assert call(path) == 0
    arrays = [job["options"]["array"] for job in slurm.jobs.values()]
    assert arrays == ["0-1000%1001", "0-1000%1001", "0-497%498"]
    (cells, _), entries = noted(path), submissions.read(runs)
    assert len(cells) == 2500
    assert list(entries) == list(cells)
    assert [entry.job for entry in entries.values()] == list(slurm.states)
    for name in list(cells)[::100]:
        assert submitted(entries[name]).folder.name == name
    assert (len(slurm.calls("scontrol")), len(slurm.calls("squeue"))) == (1, 0)

    clock = Clock()
    view = StatusView(cells, runs, clock)
    asked: list[float] = []

    def watch(seconds: int) -> list[float]:
        """Update like `sage status --watch`, but twice as often, and return when SLURM was called."""
        start, end = len(asked), clock.now + seconds
        while clock.now < end:
            view.update()
            asked.extend([clock.now] * (len(slurm.calls("squeue")) - len(asked)))
            clock.now += min(view.queue.seconds, REFRESH) / 2 + 0.01
        return [round(time) for time in asked[start:]]

    # The first poll finds a change, the others do not: each interval is twice the one before.
    assert watch(190) == [0, 2, 6, 14, 30, 62, 122, 182]
    assert view.summary() == "2500 runs: 2500 pending"
    slurm.set("RUNNING", "1_0", "3_497")
    assert watch(60) == [242, 244, 248]
    assert view.summary() == "2500 runs: 2498 pending, 2 running"
    slurm.fail("squeue", "squeue: error: Socket timed out", "squeue: error: Socket timed out")
    assert watch(30) == [256, 272]
    words = "SLURM does not answer: squeue ended with 1: squeue: error: Socket timed out"
    assert view.summary() == f"2500 runs: 2498 pending, 2 running, {words}"
    for name in cells:
        leave_result(runs / name)
    slurm.set("GONE", *slurm.states)
    assert watch(60) == []  # from the files
    assert view.summary() == "2500 runs: 2500 finished"
    assert not view.is_active
    assert min(after - before for before, after in pairwise(asked)) >= SHORTEST
