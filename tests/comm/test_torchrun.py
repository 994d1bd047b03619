"""Tests that a rank killed under torchrun is restarted and the run resumes from its checkpoint."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launcher import PATIENCE, free_port, num_steps, outside, until

CHECKOUT = Path(__file__).parents[2]


def rank_of(torchrun: int, rank: int) -> list[int]:
    """Return the processes that torchrun has started as this rank."""
    threads = Path(f"/proc/{torchrun}/task").glob("*/children")
    pids = [int(pid) for children in threads for pid in children.read_text().split()]
    variables = f"RANK={rank}".encode()
    return [pid for pid in pids if variables in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]


@pytest.mark.thorough  # tests/train/test_failure.py has a rank that kills itself, at a known step
def test_a_killed_rank_is_restarted_and_the_run_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2"]
    run = [
        "digits-ff",
        "--epochs",
        "100000",
        "--checkpoint-every",
        "20",
        "--device",
        "cpu",
        "--timeout",
        "60",
    ]
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            [*launcher, f"--master-port={free_port()}", "-m", "sage", "run", *run],
            cwd=tmp_path,
            env={**outside(), "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as torchrun,
    ):
        try:
            until(lambda: num_steps(tmp_path / "runs") > 25 or torchrun.poll() is not None)
            assert torchrun.poll() is None, log.read_text()
            (second,) = rank_of(torchrun.pid, 1)
            os.kill(second, signal.SIGKILL)
            again = "resuming from its own checkpoint, at step "
            until(lambda: again in log.read_text() or torchrun.poll() is not None)
        finally:
            torchrun.terminate()
            torchrun.wait(PATIENCE)
    output = log.read_text()
    assert again in output, output
    assert "already" not in output


def test_tasks_of_mpich_without_a_rendezvous_end_with_status_2_and_one_line(
    tmp_path: Path, sage_command: str
) -> None:
    done = subprocess.run(
        [sage_command, "run", "digits-ff", "--steps", "1"],
        cwd=tmp_path,
        env={**outside(), "PYTHONPATH": str(CHECKOUT), "PMI_RANK": "1", "PMI_SIZE": "4"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (
        "MPICH or Intel MPI has started 4 tasks, but no rendezvous address is set: set hostip" in done.stderr
    )
    assert not (tmp_path / "runs").exists()
