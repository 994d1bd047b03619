"""Runs a sweep on a SLURM cluster on this machine, whose links have a given speed in each direction.

Each rank has a node of its own. The script submits the sweep, and waits until all of its runs have ended.
Runs that have finished before are not run again. It needs root, slurm-wlm and munge.

    python benchmarks/sweep_on_links.py jobs/sweeps/time-to-target.toml --rate 10mbit
"""

import argparse
import os
import sys
from pathlib import Path

from allocation import CHECKOUT, SAGE, cluster


def main() -> int:
    """Run the sweep; returns the exit status of `sage submit`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--rate", default="10mbit", help="of each link, in tc's notation")
    parser.add_argument("--world-size", type=int, default=2, help="number of nodes")
    parser.add_argument("--hours", type=float, default=2, help="time after which the script gives up")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with cluster(given.world_size, given.rate) as started:
        done = started.run(
            *(*SAGE, "submit", str(given.sweep.resolve()), "--cluster", "slurm", "--watch"),
            cwd=Path.cwd(),
            env={"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
            timeout=3600 * given.hours,
            check=False,
        )
    print(done.stdout, done.stderr, f"load before: {load:.2f}", sep="\n", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
