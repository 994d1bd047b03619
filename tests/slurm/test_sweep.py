"""Tests of a sweep on a real SLURM: each run once, a limited number at a time, missing runs again."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launcher import PATIENCE, records

from sage.jobs import submissions
from sage.jobs.sweep import read
from sage.records.record import read_metrics
from slurm.cluster import Cluster

CHECKOUT = Path(__file__).parents[2]
SWEEP = """
workload = "digits-ff"
reducer = ["exact", "topk", "sage"]
seed = [0, 1, 2, 3]
world_size = 2
epochs = 100
steps = 5
device = "cpu"
parallel = 2
"""
LONG = """
workload = "digits-ff"
reducer = "topk"
world_size = 2
epochs = 1000
steps = 800
checkpoint_every = 100
device = "cpu"
"""

pytestmark = pytest.mark.slow

Sage = Callable[..., str]


@pytest.fixture
def sage(cluster: Cluster, tmp_path: Path, forked: dict[str, str]) -> Iterator[Sage]:
    """Run `sage COMMAND …` on the head node, in a folder that all nodes share; return its output."""

    def run(*argv: str) -> str:
        environment = {"PYTHONPATH": str(CHECKOUT), "PYTHONSAFEPATH": "1", **forked}
        return cluster.run(
            "python", "-m", "sage", *argv, cwd=tmp_path, env=environment, timeout=PATIENCE
        ).stdout

    yield run
    cluster.end_jobs()


def states(cluster: Cluster, array: str) -> list[str]:
    """Return the states of an array's tasks from squeue."""
    listed = cluster.run(
        "squeue", "--noheader", "--array", "--states=all", f"--jobs={array},{array}", "--format=%T"
    )
    return listed.stdout.split()


def summary(sage: Sage) -> str:
    return sage("status", "sweep.toml").splitlines()[-1]


def test_a_sweep_runs_two_at_a_time_and_is_resubmitted_only_for_a_missing_run(
    cluster: Cluster, sage: Sage, tmp_path: Path
) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP)
    cells = [cell.folder.name for cell in read(path).configs]
    output = sage("submit", "sweep.toml")
    assert "12 runs: 0 finished, 0 active, 12 to submit" in output
    entries = submissions.read(tmp_path / "runs")
    (array,) = {entry.job.partition("_")[0] for entry in entries.values()}
    most = 0

    def all_ended() -> bool:
        nonlocal most
        time.sleep(0.5)  # the runs need the processor too
        now = states(cluster, array)
        most = max(most, sum(state in ("RUNNING", "COMPLETING", "CONFIGURING") for state in now))
        return len(now) == 12 and not {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"} & set(now)

    cluster.until(all_ended, 3 * PATIENCE)
    assert most == 2
    assert summary(sage) == "12 runs: 12 finished"
    for cell in cells:
        assert (
            len([record for record in read_metrics(tmp_path / "runs" / cell) if record["kind"] == "step"])
            == 5
        )

    assert "12 runs: 12 finished, 0 active, 0 to submit" in sage("submit", "sweep.toml")
    assert submissions.read(tmp_path / "runs") == entries

    (tmp_path / "runs" / cells[7] / "result.json").unlink()
    assert "12 runs: 11 finished, 0 active, 1 to submit" in sage("submit", "sweep.toml")
    again = submissions.read(tmp_path / "runs")
    assert [cell for cell in cells if again[cell] != entries[cell]] == [cells[7]]
    assert cluster.wait(again[cells[7]].job, PATIENCE)["JobState"] == "COMPLETED"
    assert summary(sage) == "12 runs: 12 finished"


def test_a_run_is_requeued_after_an_interruption_or_a_failure_until_it_finishes(
    cluster: Cluster, sage: Sage, tmp_path: Path
) -> None:
    (tmp_path / "sweep.toml").write_text(LONG + "seed = [0, 1]\n")
    sage("submit", "sweep.toml")
    entries = submissions.read(tmp_path / "runs")
    (interrupted, result), (hurt, killed) = entries.items()

    def steps(cell: str) -> int:
        path = tmp_path / "runs" / cell
        return len(read_metrics(path)) if (path / "metrics.jsonl").exists() else 0

    cluster.until(lambda: min(steps(interrupted), steps(hurt)) > 150, PATIENCE)
    # Like submitit's job._interrupt(timeout=True).
    cluster.run("scancel", result.job, "--signal", "USR2")
    os.kill(cluster.ranks(killed.job)[1], 9)
    for cell, happened in ((interrupted, ["stopped", "resumed"]), (hurt, ["resumed"])):
        ended = cluster.wait(entries[cell].job, PATIENCE)
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), sage("logs", cell)
        folder = tmp_path / "runs" / cell
        assert [record["event"] for record in records(folder, "event")] == happened
        assert [record["step"] for record in records(folder, "step")] == list(range(800))
    assert "stopped, checkpoint written; requeued" in sage("logs", interrupted)
    assert "failure 1 of at most 3" in sage("logs", hurt)
    assert summary(sage) == "2 runs: 2 finished, requeued 2 times"


def test_an_invalid_run_is_not_requeued_and_a_cancelled_run_stays_cancelled(
    cluster: Cluster, sage: Sage, tmp_path: Path
) -> None:
    (tmp_path / "sweep.toml").write_text(LONG.replace("steps = 800", "lr = [0.1, 1e30]"))
    sage("submit", "sweep.toml")
    good, hopeless = submissions.read(tmp_path / "runs").values()
    ended = cluster.wait(hopeless.job, PATIENCE)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    assert sage("cancel", good.run) == "cancelled: 1 run\n"
    assert cluster.wait(good.job, PATIENCE)["JobState"] == "CANCELLED"
    table = {line.split()[0]: line for line in sage("status", "sweep.toml").splitlines()}
    assert "failed" in table[hopeless.run]
    assert "the mean gradient is not finite" in table[hopeless.run]
    assert table[good.run].rstrip().endswith("cancelled")
    assert "the mean gradient is not finite" in sage("logs", hopeless.run)


def test_pending_tasks_that_are_cancelled_are_shown_as_cancelled(
    cluster: Cluster, sage: Sage, tmp_path: Path
) -> None:
    (tmp_path / "sweep.toml").write_text(LONG + "seed = [0, 1, 2, 3]\nparallel = 1\n")
    sage("submit", "sweep.toml")
    (array,) = {entry.job.partition("_")[0] for entry in submissions.read(tmp_path / "runs").values()}
    cluster.until(lambda: "RUNNING" in states(cluster, array))
    assert sage("cancel", "sweep.toml") == "cancelled: 4 runs\n"
    cluster.until(lambda: not {"PENDING", "RUNNING", "COMPLETING"} & set(states(cluster, array)))
    output = sage("status", "sweep.toml").splitlines()
    assert [line.split()[-1] for line in output[1:-1]] == ["cancelled"] * 4
    assert output[-1] == "4 runs: 4 failed"


def test_a_sweep_can_be_submitted_inside_an_array_and_only_the_stopped_task_is_requeued(
    cluster: Cluster, tmp_path: Path, forked: dict[str, str]
) -> None:
    (tmp_path / "sweep.toml").write_text(LONG + 'seed = [0, 1]\n[slurm]\nexport = "NONE"\n')
    leftovers = {"hostip": "192.0.2.1", "port": "9", "SBATCH_COMMENT": "mine", "PYTHONPATH": str(CHECKOUT)}
    environment = {**leftovers, **forked}
    submit = "srun --ntasks=1 python -m sage submit sweep.toml"
    outer = cluster.sbatch(
        "--array=3-3", "--output=outer", "--nodes=1", "--wrap", submit, cwd=tmp_path, env=environment
    )
    cluster.until(lambda: cluster.job(f"{outer}_3")["JobState"] in ("COMPLETED", "FAILED"), PATIENCE)
    entries = submissions.read(tmp_path / "runs")
    assert len(entries) == 2, (tmp_path / "outer").read_text()

    def steps(cell: str) -> int:
        path = tmp_path / "runs" / cell
        return len(read_metrics(path)) if (path / "metrics.jsonl").exists() else 0

    cluster.until(lambda: min(map(steps, entries)) > 150, PATIENCE)
    # The last task of an array has the id of the whole array.
    other, last = (entry.job for entry in entries.values())
    assert cluster.job(last)["JobId"] == last.partition("_")[0]
    cluster.run("scancel", last, "--signal", "USR2")
    for job, restarts in ((last, "1"), (other, "0")):
        ended = cluster.wait(job, PATIENCE)
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", restarts)
