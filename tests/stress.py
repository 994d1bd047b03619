"""Runs the tests that wait for processes several times in a row while the machine is under load.

    python tests/stress.py [--load 8] [--times 3] [TEST ...]

The load is the given number of processes that compute in an endless loop. By default, these tests run:
tests/slurm, and the tests of jobs, launch, doctor, rendezvous and checkpoints. After each repetition, the
wall-clock and CPU seconds of each file are printed.
"""

import argparse
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent
PATHS = (
    *("slurm", "jobs", "cluster/test_doctor.py", "cluster/test_doctor_agents.py", "cluster/test_launch.py"),
    *("comm/test_rendezvous.py", "train/test_checkpoint.py", "train/test_faults.py"),
    *("train/test_resume.py", "train/test_run.py"),
)


def burn() -> None:
    """Compute in an endless loop until the parent ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    while True:
        sum(range(100_000))


def main() -> int:
    """Return 0 if every repetition passes, else 1; stop at the first failure."""
    parser = argparse.ArgumentParser(description="Run tests several times in a row under load.")
    parser.add_argument("--load", type=int, default=8, help="processes that compute meanwhile (default: 8)")
    parser.add_argument("--times", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument("tests", nargs="*", help="what pytest is to run; else those that wait for processes")
    given = parser.parse_args()
    burners = [
        multiprocessing.get_context("fork").Process(target=burn, daemon=True) for _ in range(given.load)
    ]
    for burner in burners:
        burner.start()
    try:
        for time_number in range(1, given.times + 1):
            start = time.monotonic()
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "--by-file",
                *(given.tests or [str(TESTS / path) for path in PATHS]),
            ]
            status = subprocess.call(command, cwd=TESTS.parent)
            seconds = time.monotonic() - start
            load = os.getloadavg()[0]
            print(
                f"run {time_number} of {given.times}: status {status}, {seconds:.0f} s, load {load:.1f}",
                flush=True,
            )
            if status:
                return 1
    finally:
        for burner in burners:
            burner.kill()
            burner.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
