"""Trains the small GPT sharded over two processes (FSDP2) with each wire format of gradients.

But for clipping, the settings and the learning rate are those of `bf16` in low_communication.py, whose pilot
runs must exist. The script writes the final losses to a CSV file, and prints them and their differences to
bf16, paired by seed. Without --folder, it prints those of the CSV file.

    python benchmarks/sharded_gpt.py --folder runs/low-communication
"""

import argparse
import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from low_communication import SEEDS, chosen, final_loss, run_once
from low_communication_figure import verdict

from sage.report.seeds import spread

RESULTS = Path(__file__).parent / "results" / "sharded_gpt.csv"

Losses = Mapping[str, Mapping[int, float]]
"""Final validation losses by wire format and seed."""

FORMATS = ("bf16", "int4", "loco", "sdp4bit")
"""int4 has no error feedback; loco is int4 with an 8-bit error; sdp4bit is rounded at random."""

RANKS = 2

CLIPPED = ("--clip-local", "none", "--clip-global", "1")
"""No rank has its whole gradient to clip: its mean is clipped."""


def train(folder: Path, wire: str, seed: int, rate: float) -> None:
    """Train once, unless the folder has the run."""
    flags = ("--reducer", "exact", "--lr", str(rate), "--seed", str(seed))
    shards = ("--mount", "fsdp", "--shards", str(RANKS), "--shard-reduce", wire)
    run_once(folder, RANKS, *flags, *shards, *CLIPPED)


def train_all(root: Path, num_seeds: int) -> Losses:
    """Train what the folder lacks, seed by seed, and return the losses."""
    rate = chosen(root)["bf16"]
    losses: dict[str, dict[int, float]] = {wire: {} for wire in FORMATS}
    for seed in range(num_seeds):
        for wire in FORMATS:
            folder = root / "shards" / f"{wire}-{seed}"
            train(folder, wire, seed, rate)
            loss = final_loss(folder)
            if loss is None:
                raise SystemExit(f"{folder} has no finished run: see its log")
            losses[wire][seed] = loss
    return losses


def read(path: Path = RESULTS) -> Losses:
    """Read the CSV file."""
    losses: dict[str, dict[int, float]] = {wire: {} for wire in FORMATS}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            losses[row["wire"]][int(row["seed"])] = float(row["loss"])
    return losses


def write(path: Path, losses: Losses) -> None:
    """Write the CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("wire", "seed", "loss"))
        writer.writerows((wire, seed, loss) for wire in losses for seed, loss in losses[wire].items())


def table(losses: Losses) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| gradients on the wire | n | validation loss | minus bf16, 95 % interval | verdict |"
    yield "|---|---:|---:|---:|---|"
    base = losses["bf16"]
    reference = spread(base.values())
    assert reference is not None
    for wire, of_seed in losses.items():
        loss = spread(of_seed.values())
        difference = spread(of_seed[seed] - base[seed] for seed in of_seed.keys() & base.keys())
        assert loss is not None
        assert difference is not None
        low, high = difference.interval or (math.nan, math.nan)
        against = "" if wire == "bf16" else f"{difference.mean:+.4f} ({low:+.4f} to {high:+.4f})"
        words = "baseline" if wire == "bf16" else verdict(loss, reference)
        yield f"| `{wire}` | {loss.num} | {loss.mean:.4f} ± {loss.sd or math.nan:.4f} | {against} | {words} |"


def main() -> None:
    """Train and write the CSV file, or read it; then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="of low_communication.py")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="number of seeds")
    given = parser.parse_args()
    if given.folder:
        write(RESULTS, train_all(given.folder, given.seeds))
    print(*table(read()), sep="\n")


if __name__ == "__main__":
    main()
