"""Runs the tests that wait for processes several times in a row while the machine is under load.

    python tests/stress.py [--load 8] [--times 3] [TEST ...]

The load is the number of busy processes on this machine, those of the tests and of other work included. As
many processes as are missing to it compute in an endless loop. By default, these tests run: tests/slurm, and
the tests of jobs, launch, doctor, rendezvous and checkpoints. After each repetition, the wall-clock and CPU
seconds of each file are printed, and the load averages of the last 1, 5 and 15 minutes.
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


PERIOD = 0.2  # seconds between two looks at the number of busy processes


def end_with_the_parent() -> None:
    """Let the kernel end this process when its parent ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def burn() -> None:
    """Compute in an endless loop."""
    end_with_the_parent()
    while True:
        sum(range(100_000))


def hold_load(load: int) -> None:
    """Keep `load` processes busy: stop and continue burners as other processes start and end."""
    end_with_the_parent()
    burners = [multiprocessing.get_context("fork").Process(target=burn) for _ in range(load)]
    for burner in burners:
        burner.start()
    pids = [burner.pid for burner in burners if burner.pid]
    active = load
    others = 0.0
    while True:
        time.sleep(PERIOD)
        running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1  # but this process
        others += (max(running - active, 0) - others) / 10  # a mean over about ten periods
        wanted = min(max(load - round(others), 0), load)
        for number, pid in enumerate(pids):
            if (number < wanted) != (number < active):
                os.kill(pid, signal.SIGCONT if number < wanted else signal.SIGSTOP)
        active = wanted


def main() -> int:
    """Return 0 if every repetition passes, else 1; stop at the first failure."""
    parser = argparse.ArgumentParser(description="Run tests several times in a row under load.")
    parser.add_argument("--load", type=int, default=8, help="busy processes meanwhile (default: 8)")
    parser.add_argument("--times", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument("tests", nargs="*", help="what pytest is to run; else those that wait for processes")
    given = parser.parse_args()
    holder = multiprocessing.get_context("fork").Process(target=hold_load, args=(given.load,))
    holder.start()
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
            load = " ".join(f"{average:.1f}" for average in os.getloadavg())
            print(
                f"run {time_number} of {given.times}: status {status}, {seconds:.0f} s, load {load}",
                flush=True,
            )
            if status:
                return 1
    finally:
        holder.kill()
        holder.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
