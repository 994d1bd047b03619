"""Trains the small GPT with methods that communicate less, and times their steps on a slow link.

The workload is gpt-char-cpu-shakespeare, cut to 300 steps with a cosine to 0. Every method is tuned alike:
three learning rates, one pilot seed, two ranks. The best one is trained from six seeds on two and on four
ranks. These ranks are simulated in one process, which gives the losses and the bytes but no times. The times
are those of a few steps of each method on a SLURM cluster on this machine with links of the given speed
(allocation.py). Each part does only what its folder lacks; low_communication_figure.py reads the folders.

    python benchmarks/low_communication.py tune train links --folder runs/low-communication
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from allocation import SAGE, allocation

from sage.report.runs import read_runs

WORKLOAD = "gpt-char-cpu-shakespeare"

NUM_STEPS = 300
"""Ten rounds of 30 local steps."""

WINDOWS_OF_EPOCH = 15_684
"""Windows of 64 characters in an epoch of the workload: evaluations are counted in epochs."""

BATCH = 6
"""Windows of a rank in a step, as in the workload."""

EVAL_STEPS = 60
"""Steps between two evaluations: a multiple of the 30 local steps."""

COMMON = (
    *("--steps", str(NUM_STEPS), "--warmup-steps", "30", "--min-lr", "0", "--data.limit-test", "32000"),
    *("--device", "cpu", "--clip-global", "none", "--clip-local", "1"),
)
"""Settings of all methods. Gradients are clipped at each rank: some methods have no mean to clip."""

SHORT = ("--warmup-steps", "5", "--data.limit-test", "640")
"""Settings of the runs that are only timed."""

OVERLAPPED = ("--mount", "ddp", "--bucket-mb", "1", "--clip-local", "none")
"""Settings of the timed runs with DDP's overlap, in which no rank has its whole gradient to clip."""

PILOT_SEED = 100
SEEDS = range(6)
WORLD_SIZES = (2, 4)


@dataclass(frozen=True)
class Method:
    """A method: its flags, and the learning rates that the pilot runs try."""

    flags: str
    rates: Sequence[float]
    overlapped: bool = False
    """Whether it is timed with DDP's overlap of communication and backward."""
    timed_steps: int = 24
    """Steps to time; they are fewer than NUM_STEPS, so `timed_flags` let a freeze happen earlier."""
    timed_flags: str = ""


ADAM = (1e-3, 2e-3, 4e-3)
MUON = "--optimizer muon --momentum 0.95 --momentum-kind nesterov --adamw-lr 3e-3"
ONE_BIT = "--reducer exact --optimizer {} --freeze-step 100"

METHODS: Mapping[str, Method] = {
    "bf16": Method("--reducer bf16", ADAM, overlapped=True),
    "bf16, Muon": Method(f"--reducer bf16 {MUON}", (0.025, 0.05, 0.1), overlapped=True),
    "LocalSGD, H = 8": Method("--local localsgd --reducer exact", ADAM),
    "DiLoCo, H = 30": Method("--local diloco --local-steps 30 --reducer exact", ADAM, timed_steps=90),
    "streaming DiLoCo": Method("--local streaming-diloco", ADAM, timed_steps=90),
    "SparseLoCo": Method("--local sparseloco", ADAM, timed_steps=90),
    "MuLoCo, fp4": Method("--local muloco --reducer fp4 --adamw-lr 3e-3", (0.025, 0.05, 0.1), timed_steps=90),
    "DeMo": Method("--optimizer demo --reducer exact", (5e-4, 1e-3, 2e-3)),
    "1-bit Adam": Method(ONE_BIT.format("onebit-adam"), ADAM, timed_flags="--freeze-step 12"),
    "0/1 Adam": Method(
        f"{ONE_BIT.format('zeroone-adam')} --local-step-scaler 30 --local-step-clipper 4",
        ADAM,
        timed_steps=60,
        timed_flags="--freeze-step 24 --local-step-scaler 6",
    ),
    "Dion, 1/4": Method(
        "--optimizer dion --reducer exact --rank-fraction 0.25 --adamw-lr 3e-3 --momentum 0.95",
        (0.01, 0.02, 0.04),
    ),
}
"""bf16 with AdamW is the baseline; the inner optimiser of the local methods is AdamW too, but for MuLoCo."""


def folder_of(root: Path, part: str, name: str, *more: object) -> Path:
    """Return the folder of a method's runs.

    >>> folder_of(Path("runs"), "train", "LocalSGD, H = 8", 2).as_posix()
    'runs/train/localsgd-h-8-2'
    """
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower()).split()
    return root / part / "-".join([*words, *map(str, more)])


def final_loss(folder: Path) -> float | None:
    """Return the last validation loss of a folder's run; infinity if it failed, None if it is not there."""
    if not folder.exists():
        return None
    runs, _ = read_runs([folder])
    if len(runs) != 1 or not (runs[0].is_finished or runs[0].failure):
        return None
    return float(runs[0].epochs[-1]["metrics"]["loss"]) if runs[0].is_finished else float("inf")


def run_once(folder: Path, ranks: int, *flags: str) -> None:
    """Run the workload with the common settings and these flags, unless the folder has the run."""
    if final_loss(folder) is not None:
        return
    every = EVAL_STEPS / (WINDOWS_OF_EPOCH // (BATCH * ranks))
    command = (
        *(*SAGE, "run", WORKLOAD, *COMMON, *flags, "--world-size", str(ranks)),
        *("--eval-every", f"{every:.6f}", "--runs", str(folder)),
    )
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
    print(f"{folder}: status {done.returncode}: {last}", file=sys.stderr, flush=True)


def train(folder: Path, method: Method, rate: float, seed: int, ranks: int) -> None:
    """Train once with simulated ranks, unless the folder has the run."""
    flags = (*method.flags.split(), "--lr", str(rate), "--seed", str(seed), "--workers-in-process")
    run_once(folder, ranks, *flags)


def tune(root: Path, jobs: int) -> None:
    """Try the learning rates of every method on the pilot seed with two ranks."""
    todo = [
        (folder_of(root, "tune", name, rate), method, rate, PILOT_SEED, 2)
        for name, method in METHODS.items()
        for rate in method.rates
    ]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda each: train(*each), todo))


def chosen(root: Path) -> Mapping[str, float]:
    """Return the learning rate with the lowest pilot loss for each method.

    Raises:
        SystemExit: if a pilot run is missing.
    """
    best: dict[str, float] = {}
    for name, method in METHODS.items():
        losses = {rate: final_loss(folder_of(root, "tune", name, rate)) for rate in method.rates}
        if missing := [rate for rate, loss in losses.items() if loss is None]:
            raise SystemExit(
                f"no pilot run of {name} with learning rate {missing[0]}: run the part `tune` first"
            )
        best[name] = min(losses, key=lambda rate: losses[rate] or 0)
    return best


def trainings(root: Path) -> Iterator[tuple[Path, Method, float, int, int]]:
    """Yield the trainings in the order of their value: three seeds of all methods, then three more."""
    rates = chosen(root)
    for seeds in (SEEDS[:3], SEEDS[3:]):
        for ranks in WORLD_SIZES:
            for seed in seeds:
                for name, method in METHODS.items():
                    yield folder_of(root, "train", name, ranks, seed), method, rates[name], seed, ranks


def time_on_links(root: Path, rate: str) -> None:
    """Run a few steps of each method on a cluster with a rank per node."""
    for ranks in WORLD_SIZES:
        missing = [name for name in METHODS if final_loss(folder_of(root, "links", name, ranks)) is None]
        if not missing:
            continue
        with allocation(ranks, rate) as run:
            load = os.getloadavg()[0]
            for name in missing:
                method = METHODS[name]
                folder = folder_of(root, "links", name, ranks).resolve()
                flags = [*COMMON, *method.flags.split(), *method.timed_flags.split()]
                mount = OVERLAPPED if method.overlapped else ()
                steps = (
                    "--steps",
                    str(method.timed_steps),
                    "--warmup-steps",
                    "5",
                    "--data.limit-test",
                    "640",
                )
                run(*SAGE, "run", WORKLOAD, *flags, *mount, *steps, "--runs", str(folder))
                note = json.dumps({"load_before": load, "rate": rate})
                (folder / "links.json").write_text(note + "\n")
                print(f"{folder.name} timed", file=sys.stderr, flush=True)


def main() -> None:
    """Do the parts that are named, in the order given."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("parts", nargs="+", choices=("tune", "train", "links"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time")
    parser.add_argument("--rate", default="10mbit", help="of each link, in tc's notation")
    given = parser.parse_args()
    for part in given.parts:
        if part == "tune":
            tune(given.folder, given.jobs)
        elif part == "train":
            with ThreadPoolExecutor(given.jobs) as pool:
                list(pool.map(lambda each: train(*each), trainings(given.folder)))
        else:
            time_on_links(given.folder, given.rate)


if __name__ == "__main__":
    main()
