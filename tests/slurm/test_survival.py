"""Tests that a job that fails is requeued and resumes with bitwise identical results."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from launcher import PATIENCE, Launcher, assert_same_run, is_gone, is_pending, num_steps, records

from .cluster import Cluster, links_need

CHECKOUT = Path(__file__).parents[2]
ARGV = "digits-ff --steps 600 --epochs 1000 --eval-every 50 --checkpoint-every 50"
"""A run of some seconds after the start of its ranks."""

TIMEOUT = 15
"""Time limit of a collective in seconds, after which a stopped rank is detected."""

pytestmark = pytest.mark.slow

Reference = Callable[[int], Path]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    """The folder of the same run without interruption, by its number of ranks."""
    launcher = Launcher(tmp_path_factory.mktemp("reference"))
    yield lambda ranks: launcher.reference(f"{ARGV} --world-size {ranks}").folder
    launcher.close()


@dataclass
class Job:
    """A running job with one rank on each of two or three of the four nodes."""

    cluster: Cluster
    num_ranks: int
    id: str
    runs: Path
    log: Path

    def wait_for_steps(self) -> "Job":
        """Wait until the run is beyond its first checkpoint but far from its end."""
        self.cluster.until(lambda: num_steps(self.runs) > 120, PATIENCE)
        return self

    def wait_for_signal(self, number: int) -> "Job":
        """Stop the ranks until SLURM's signal is pending at each of them, and then continue them."""
        ranks = self.cluster.ranks(self.id).values()
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        # SLURM may continue them itself, and then they may have ended.
        self.cluster.until(lambda: all(is_gone(pid) or is_pending(pid, number) for pid in ranks), 150)
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return self

    def finishes_equal_to(self, reference: Reference, *, restarts: int | None = 1) -> list[str]:
        """Wait for the end, compare the run with the reference, and return its events."""
        ended = self.cluster.wait(self.id, PATIENCE)
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), self.log.read_text()
        assert restarts is None or ended["Restarts"] == str(restarts)
        (folder,) = self.runs.glob("digits-ff-*")
        assert_same_run(reference(self.num_ranks), folder)
        assert not (folder / "failure.json").exists()
        return [record["event"] for record in records(folder, "event")]


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Start the run under pararun; the job is cancelled if the test leaves it behind.

    Three ranks are for failures that rank 0 must tell from those of another rank.
    """
    jobs: list[Job] = []

    def start(*options: str, ranks: int = 2, timeout: int = TIMEOUT) -> Job:
        runs, log = tmp_path / "runs", tmp_path / "out"
        argv = [*ARGV.split(), f"--world-size={ranks}", f"--timeout={timeout}", f"--runs={runs}"]
        script = [f"--nodes={ranks}", f"--output={log}", *options, str(CHECKOUT / "pararun"), *argv]
        job = cluster.sbatch(*script, cwd=tmp_path, env={"SAGE_HOME": str(CHECKOUT)})
        jobs.append(Job(cluster, ranks, job, runs, log))
        return jobs[-1]

    yield start
    for job in jobs:
        cluster.run("scancel", job.id, check=False)
        cluster.wait(job.id, PATIENCE)


# The ranks get a signal: they write a checkpoint at the same step, and no step is repeated.


def test_submitits_signal_checkpoints_and_requeues_the_run(
    cluster: Cluster, tmp_path: Path, reference: Reference
) -> None:
    sweep = tmp_path / "one.toml"
    values = json.loads((reference(2) / "config.json").read_text())
    names = ("steps", "epochs", "eval_every", "checkpoint_every", "world_size")
    lines = [
        'workload = "digits-ff"',
        f"timeout = {TIMEOUT}",
        *(f"{name} = {values[name]}" for name in names),
    ]
    sweep.write_text("\n".join(lines))
    environment = {"PYTHONPATH": str(CHECKOUT)}
    cluster.run("python", "-m", "sage", "submit", sweep.name, cwd=tmp_path, env=environment)
    (entry,) = map(json.loads, (tmp_path / "runs" / ".jobs" / "submitted.jsonl").read_text().splitlines())
    log = Path(entry["logs"]) / f"{entry['job']}_0_log.out"
    job = Job(cluster, 2, entry["job"], tmp_path / "runs", log).wait_for_steps()
    cluster.run("scancel", "--signal=USR2", job.id)
    assert job.finishes_equal_to(reference) == ["stopped", "resumed"]
    assert "stopped, checkpoint written; requeued" in log.read_text()


def test_a_preempted_job_writes_a_checkpoint_and_resumes(
    start: Callable[..., Job], reference: Reference, cluster: Cluster, tmp_path: Path
) -> None:
    job = start("--partition=low", "--exclusive", "--signal=USR1@10", timeout=600).wait_for_steps()
    urgent = cluster.sbatch(
        "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap", "true", cwd=tmp_path
    )
    # With preempt_send_user_signal SLURM sends the job's own signal, and only 20 s later SIGTERM.
    job.wait_for_signal(signal.SIGUSR1)
    assert cluster.wait(urgent, PATIENCE)["JobState"] == "COMPLETED"
    assert job.finishes_equal_to(reference) == ["stopped", "resumed"]


def test_a_job_near_its_time_limit_writes_a_checkpoint_and_resumes(
    start: Callable[..., Job], reference: Reference
) -> None:
    job = start("--time=10", "--signal=USR1@50", timeout=600).wait_for_steps()
    # SLURM counts in minutes, checks every 30 s, and signals up to a minute early. The limit is lowered only
    # here: from the start, a short one would end the job again and again before a busy machine trains.
    hours, minutes, _ = map(int, job.cluster.job(job.id)["RunTime"].split(":"))
    limit = f"timelimit={60 * hours + minutes + 2}"
    job.cluster.run("scontrol", "update", f"jobid={job.id}", limit)
    job.wait_for_signal(signal.SIGUSR1)
    job.cluster.until(lambda: "stopped, checkpoint written; requeued" in job.log.read_text())
    job.cluster.run("scontrol", "update", f"jobid={job.id}", "timelimit=10")
    # How often the limit is near before this update depends on SLURM: the job may start again before it.
    assert job.finishes_equal_to(reference, restarts=None)[:2] == ["stopped", "resumed"]


def test_a_requeued_job_writes_a_checkpoint_and_resumes(
    start: Callable[..., Job], reference: Reference
) -> None:
    job = start().wait_for_steps()
    job.cluster.run("scontrol", "requeue", job.id)
    assert job.finishes_equal_to(reference) == ["stopped", "resumed"]


# The ranks get no signal: the run resumes from the last checkpoint.


def test_a_job_with_a_killed_rank_resumes_from_its_checkpoint(
    start: Callable[..., Job], reference: Reference
) -> None:
    job = start(ranks=3).wait_for_steps()
    os.kill(job.cluster.ranks(job.id)[2], signal.SIGKILL)
    assert job.finishes_equal_to(reference) == ["resumed"]
    assert "failure 1 of at most 3" in job.log.read_text()


def test_a_job_with_a_stopped_rank_resumes_from_its_checkpoint(
    start: Callable[..., Job], reference: Reference
) -> None:
    job = start(ranks=3).wait_for_steps()
    os.kill(job.cluster.ranks(job.id)[1], signal.SIGSTOP)
    assert job.finishes_equal_to(reference) == ["resumed"]
    assert "Cause: rank 1 does not respond" in job.log.read_text()


def test_a_job_that_loses_a_node_resumes_on_another(
    start: Callable[..., Job], reference: Reference, cluster: Cluster
) -> None:
    job = start().wait_for_steps()
    nodes = cluster.run("scontrol", "show", "hostnames", cluster.job(job.id)["NodeList"]).stdout.split()
    cluster.down(nodes[1])
    try:
        assert job.finishes_equal_to(reference)[-1] == "resumed"
        assert nodes[1] not in cluster.job(job.id)["NodeList"]
    finally:
        cluster.resume(nodes[1])


@pytest.mark.skipif(bool(links_need()), reason=links_need())
def test_a_job_that_loses_a_link_resumes_from_its_checkpoint(
    start: Callable[..., Job], reference: Reference, cluster: Cluster
) -> None:
    job = start(ranks=3).wait_for_steps()
    nodes = cluster.run("scontrol", "show", "hostnames", cluster.job(job.id)["NodeList"]).stdout.split()
    cluster.pull(nodes[1])
    try:
        # SLURM itself abandons a node after SlurmdTimeout, here 20 s.
        assert job.finishes_equal_to(reference) == ["resumed"]
    finally:
        cluster.plug(nodes[1])
        cluster.until(lambda: "*" not in cluster.run("sinfo", "-h", "-o", "%t").stdout)


# Failures that a requeue does not fix.


def test_a_job_that_fails_repeatedly_is_requeued_at_most_max_requeues_times(
    cluster: Cluster, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    # Longer than SLURM's limit on comments and than a command line, and similar to the count.
    text = "Comment=sage: failure 0 of at most 9 " * 4000
    (tmp_path / "text").write_text(f"9 {text}")
    python.write_text(f"#!/bin/sh\ncp {tmp_path}/text $SAGE_OUTCOME\nexit 9\n")
    python.chmod(0o755)
    environment = {"PYTHON": str(python), "SAGE_HOME": str(CHECKOUT), "max_requeues": "2"}
    script = ["--nodes=1", "--output=out", str(CHECKOUT / "pararun")]
    ended = cluster.wait(cluster.sbatch(*script, cwd=tmp_path, env=environment), PATIENCE)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "9:0", "2")
    output = (tmp_path / "out").read_text()
    assert "ended with status 9, failed again after 2 requeues: Comment=sage: failure 0" in output
    assert not list(tmp_path.glob(".sage-job-*"))


@pytest.mark.parametrize("argv", ["digits-ff --densty 0.1", "digits-ff --lr -1"])
def test_a_job_with_an_invalid_setting_is_not_requeued(
    cluster: Cluster, tmp_path: Path, forked: dict[str, str], argv: str
) -> None:
    script = ["--nodes=2", "--output=out", str(CHECKOUT / "pararun"), *argv.split()]
    environment = {"SAGE_HOME": str(CHECKOUT), **forked}
    ended = cluster.wait(cluster.sbatch(*script, cwd=tmp_path, env=environment), PATIENCE)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    assert "ended with status 2, not requeued: " in (tmp_path / "out").read_text()


def test_a_cancelled_job_stays_cancelled(start: Callable[..., Job]) -> None:
    job = start().wait_for_steps()
    job.cluster.run("scancel", job.id)
    assert job.cluster.wait(job.id, PATIENCE)["JobState"] == "CANCELLED"
    job.cluster.until(lambda: not job.cluster.ranks(job.id))
    assert job.cluster.job(job.id)["JobState"] == "CANCELLED"
    assert json.loads((next(job.runs.glob("digits-ff-*")) / "config.json").read_text())["world_size"] == 2
