"""Measures what every reducer reaches on a CNN and on a small GPT, over several seeds, and what it costs.

    SAGE_DATA_DIR=<folder with cifar10/ and tinyshakespeare/> python benchmarks/quality_networks.py
    python benchmarks/quality_networks.py --reducers topk qsgd --seeds 0 1    # measure only these
    python benchmarks/quality_networks.py --table                             # the measured rows as Markdown

Each training is `sage run` on two simulated ranks in a process of its own, one after another, with one
thread, and each reducer has its own memory. The settings are those of quality.py: every method is set to send
an eighth of the bytes of a dense fp32 all-reduce, or the nearest possible amount. A row is written when its
training has ended, and rows that are in the CSV are not measured again, so that an interrupted sweep goes on.

resnet20-cifar10: 100 steps of 16 images per rank (two epochs of the first 1,600 training images), a cosine
schedule from 0.05, accuracy on the first 1,000 test images. gpt-char-cpu-shakespeare: 120 steps of 6 windows
per rank, AdamW with a cosine schedule from 1e-3 to 1e-4 after 20 steps of warm-up, loss on the first 16,384
characters of the validation text. vNMSE is measured every tenth step, outside of the ledger and the step
time. The peak memory is that of the process with both ranks.
"""
# One row per network, reducer and seed.

import argparse
import csv
import json
import math
import multiprocessing
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from quality import DENSITY, EVERY, SHARE, reducers
from quality import settings as settings_of

from sage.config import load, resolve
from sage.output.units import size
from sage.records.record import read_metrics
from sage.report.seeds import spread
from sage.train import run

RESULTS = Path(__file__).parent / "results" / "quality-networks.csv"
RUNS = Path("runs/quality-networks")
SEEDS = (0, 1, 2)
COMMON: dict[str, Any] = {
    "world_size": 2,
    "workers_in_process": True,
    "eval_every": 1000.0,
    "schedule": "cosine",
    "vnmse_every": 10,
    "histogram_every": 10_000,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet20-cifar10": {
        "batch_size": 16,
        "data_options": {"limit_train": 1600, "limit_test": 1000},
        "steps": 100,
        "epochs": 2.0,
        "lr": 0.05,
        "milestones": [],
        "warmup_epochs": 0,
    },
    "gpt-char-cpu-shakespeare": {
        "data_options": {"block_size": 64, "limit_test": 16_384},
        "steps": 120,
        "epochs": 1.0,
        "warmup_steps": 20,
    },
}
"""Settings of each network that differ from its workload's."""
METRICS = {"resnet20-cifar10": "accuracy", "gpt-char-cpu-shakespeare": "loss"}
MISSING = "–"


def settings(network: str, reducer: str) -> dict[str, Any]:
    """Return the options of a reducer on a network."""
    if reducer == "threshold" and network.startswith("gpt"):
        return {"density": DENSITY}  # from the first gradient; the CNN's λ is for its gradients
    return settings_of(reducer, net=True)


@dataclass
class Row:
    """The result of one training."""

    network: str
    reducer: str
    seed: int
    options: str
    steps: int
    final: float
    """Accuracy (CNN) or loss (GPT) at the end; not a number if the run diverged."""
    at_budget: float
    """Training loss over twenty steps, where an eighth of the dense run's bytes had been sent."""
    vnmse: float
    bits_per_element: float
    """Payload of a rank and step by the number of parameters."""
    dense_over: float
    """Bytes of a dense all-reduce divided by those sent."""
    state_bytes: int
    peak_bytes: int
    step_ms: float
    """Median time of the step of both ranks, one after the other; beside other work on the machine."""


def measured(network: str, reducer: str, seed: int) -> Row:
    """Train once, and read the result."""
    overrides = {
        **COMMON,
        **NETWORKS[network],
        "reducer": reducer,
        "reducer_options": settings(network, reducer),
        "seed": seed,
        "runs": RUNS,
    }
    config = load(network, overrides=overrides)
    status = run.main(config)
    folder = resolve(config).folder
    if status != 0:
        raise RuntimeError(f"status {status}, see above")
    result = json.loads((folder / "result.json").read_text())
    steps = [record for record in read_metrics(folder) if record["kind"] == "step"]
    dense = 4 * result["parameters"]  # a rank sends 2(W-1)/W times the parameters; W = 2
    sent, losses = 0, list[float]()
    for step in steps:
        sent += step["wire_sent"]
        if sent > SHARE * dense * len(steps) and len(losses) >= EVERY:
            break
        losses.append(math.inf if step["loss"] is None else step["loss"])
    payload = sum(result["payload_per_step"].values())
    final = result["final"][METRICS[network]]
    return Row(
        network=network,
        reducer=reducer,
        seed=seed,
        options=json.dumps(settings(network, reducer)),
        steps=result["steps"],
        final=math.nan if final is None else round(final, 5),
        at_budget=round(statistics.fmean(losses[-EVERY:]), 5),
        vnmse=float(f"{result.get('vnmse') or 0.0:.5g}"),
        bits_per_element=round(8 * payload / result["parameters"], 4),
        dense_over=round(dense / result["wire_sent_per_step"], 3),
        state_bytes=result["state_bytes"],
        peak_bytes=result["peak_bytes"],
        step_ms=round(1e3 * result["step_seconds"]["p50"], 1),
    )


def in_process(case: tuple[str, str, int]) -> Row:
    """Train in a process of its own, whose peak memory is that of one training; torch is imported once."""
    torch.set_num_threads(1)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measured, case)


def cases(names: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, str, int]]:
    """Return all trainings: every reducer and network with one seed, then with the next."""
    return [(network, name, seed) for seed in seeds for name in names for network in NETWORKS]


def key(row: dict[str, str]) -> tuple[str, str, int]:
    """The training of a row."""
    return row["network"], row["reducer"], int(row["seed"])


def measure(names: Sequence[str], seeds: Sequence[int], output: Path) -> int:
    """Measure what the CSV lacks, one training at a time; return the number of failed trainings."""
    failed = 0
    for case in cases(names, seeds):
        rows = {key(row): row for row in read(output)}
        if case in rows:
            continue
        try:
            row = in_process(case)
        except Exception as error:
            failed += 1
            print(f"FAILED {' '.join(map(str, case))}: {error}", flush=True)
            continue
        rows[case] = {name: str(value) for name, value in asdict(row).items()}
        with output.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[case])
            writer.writeheader()
            writer.writerows(row for _, row in sorted(rows.items()))
        print(f"{row.network:26}{row.reducer:18}{row.seed} {row.final:.4g} {row.vnmse:.3g}", flush=True)
    return failed


def read(path: Path = RESULTS) -> list[dict[str, str]]:
    """Read the measured rows."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows: Sequence[dict[str, str]]) -> str:
    """Return a Markdown table with one row per measured reducer, and both networks side by side."""
    of_network = ["vNMSE", "bits/element", "loss at budget", "state", "peak memory"]
    heading = ["reducer", "settings", "ResNet-20: accuracy", *of_network, "GPT: loss", *of_network, "n"]
    lines = [heading, ["---", "---", *["---:"] * (len(heading) - 2)]]
    for name in sorted({row["reducer"] for row in rows}):
        own = [row for row in rows if row["reducer"] == name]
        cells = [cell for network in NETWORKS for cell in _cells(network, own)]
        counts = [sum(row["network"] == network for row in own) for network in NETWORKS]
        shown = str(counts[0]) if len(set(counts)) == 1 else " and ".join(map(str, counts))
        lines.append([f"`{name}`", _options(own), *cells, shown])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(network: str, own: Sequence[dict[str, str]]) -> list[str]:
    """The cells of a reducer on a network: means over the seeds, with an interval for the metric."""
    found = [row for row in own if row["network"] == network]
    if not found:
        return ["not measured", *[MISSING] * 5]

    def mean(name: str) -> float:
        return statistics.fmean(float(row[name]) for row in found)

    final = spread(float(row["final"]) for row in found)
    assert final is not None
    text = f"{final.mean:.3f}" if final.num else "diverged"
    if final.interval is not None:
        text += f" ± {final.interval[1] - final.mean:.3f}"
    if final.num and final.num_not_finite:
        text += f", {final.num_not_finite} diverged"
    loss = mean("at_budget")
    return [
        text,
        f"{mean('vnmse'):.2g}",
        f"{mean('bits_per_element'):.2f}",
        f"{loss:.2f}" if math.isfinite(loss) else "diverged",
        size(mean("state_bytes")),
        size(mean("peak_bytes")),
    ]


def _options(own: Sequence[dict[str, str]]) -> str:
    """The options that differ from the defaults; for each network, if they differ between the two."""
    texts = {}
    for row in own:
        options = json.loads(row["options"])
        brief = {name: f"{x:.3g}" if isinstance(x, float) else x for name, x in options.items()}
        texts[row["network"]] = " ".join(f"{name}={value}" for name, value in brief.items())
    if len(set(texts.values())) <= 1:
        return next(iter(texts.values()), "")
    return "; ".join(f"{network.split('-')[0]}: {text}" for network, text in texts.items() if text)


def main() -> int:
    """Measure, or print the measured rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--reducers", nargs="+", help="measure only these; by default all and four hybrids")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--output", type=Path, default=RESULTS, help="the CSV")
    parser.add_argument("--table", action="store_true", help="print the measured rows as Markdown")
    given = parser.parse_args()
    if given.table:
        print(table(read(given.output)))
        return 0
    return min(1, measure(given.reducers or reducers(), given.seeds, given.output))


if __name__ == "__main__":
    raise SystemExit(main())
