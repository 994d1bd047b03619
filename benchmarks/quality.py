"""Measures the result of every reducer relative to the bytes it sends, on two convex problems and a CNN.

    SAGE_DATA_DIR=<folder with libsvm/ and cifar10/> python benchmarks/quality.py convex
    SAGE_DATA_DIR=<...> python benchmarks/quality.py cnn
    SAGE_DATA_DIR=<...> python benchmarks/quality.py times    # the CNN's times again, one run at a time
    python benchmarks/quality.py table                # all as Markdown

The output has one row per reducer. The settings match the wire bytes: every method is set to send an eighth
of what a dense fp32 all-reduce moves, or the nearest possible amount; `SETTINGS` lists the options that
differ from a density of 1/16. Each row states the bytes actually sent. A row gives the result after all
steps, and the result at the budget: at the step where the method had sent an eighth of the bytes of the dense
run. Methods that send more per step reach the budget after fewer steps.

convex: logistic regression on LIBSVM's a9a and w8a, l2 = 1/N, two simulated ranks with half of the rows each,
full gradients, no momentum. The step sizes are 8/L on a9a and 24/L on w8a, where L bounds the curvature; they
decay linearly to 0 over the second half. The gap is (f − f*) / f*, with f* from Newton's method in double
precision. With error feedback, there are 8,000 steps on a9a and 4,000 on w8a, after which exact is within
1e-4; without error feedback, there are 8,000 steps on a9a. For methods with a schedule, an epoch has 20
steps.

cnn: ResNet-20 on CIFAR-10, two simulated ranks in the engine itself (`sage run`), each reducer with its own
memory, 4 epochs of 80 steps with 16 images per rank, from the first 2,560 training images; accuracy on the
first 1,000 test images.

times: the median time of a step of the CNN, of 60 steps; nothing else may run. It replaces that of the rows.
"""

import argparse
import csv
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.special import expit
from sklearn.datasets import load_svmlight_file
from torch import Tensor

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import load, resolve
from sage.data.dataset import data_root
from sage.records.record import read_metrics
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.train import run

# N = rows, F = features including the constant, W = ranks

RESULTS = Path(__file__).parent / "results"
DENSITY = 1 / 16
HYBRIDS = ("topk+efsign", "topk+terngrad", "adacomp+efsign", "adacomp+terngrad")
SETTINGS: dict[str, dict[str, Any]] = {
    "randomk": {"density": 1 / 8},  # sends no indices
    "threshold": {"threshold": 0.05},  # the default is far larger than these gradients
    "dithering": {"norm": "max"},  # under error feedback the l2 norm of a whole layer diverges
    **dict.fromkeys(("powersgd", "lqsgd", "svd", "atomo"), {"rank": 4}),
    "sparseloco": {"density": 1 / 4},  # 14 bits per element sent
}
"""Options by reducer, if they differ from `density=1/16` and the defaults."""
SETTINGS_CNN: dict[str, dict[str, Any]] = {
    "threshold": {"threshold": 0.015},
    "accordion": {"density": DENSITY, "switch_every": 1},  # the CNN trains for four epochs
    "accordion_powersgd": {"switch_every": 1},
    **dict.fromkeys(("topk+efsign", "topk+terngrad"), {"density": 1 / 4}),  # the indices take few bits
}
"""Options that replace those of `SETTINGS` on the CNN."""

RANKS = 2
FEATURES = {"a9a": 123, "w8a": 300}
STEPS = {("a9a", "residual"): 8000, ("a9a", "none"): 8000, ("w8a", "residual"): 4000}
RATE = {"a9a": 8.0, "w8a": 24.0}
"""Step size in units of 1 / L, where L bounds the gradient's Lipschitz constant."""
EVERY = 20
"""Steps between two evaluations of the loss, which are one epoch of the convex problems."""
SHARE = 1 / 8
"""The budget as a share of the bytes that the dense run sends."""


def reducers() -> list[str]:
    """Return the names of all reducers and of the hybrids."""
    return [*registry.names("reducers"), *HYBRIDS]


def settings(name: str, *, net: bool = False) -> dict[str, Any]:
    """Return the options of a reducer on the convex problems or the CNN."""
    if net and name in SETTINGS_CNN:
        return SETTINGS_CNN[name]
    if name in SETTINGS:
        return SETTINGS[name]
    return {"density": DENSITY} if "density" in registry.options(registry.load("reducers", name)) else {}


# Convex problems


@dataclass(frozen=True)
class Problem:
    """Logistic regression; each rank holds its rows, multiplied by their labels, and their transpose."""

    rows_WNF: list[Any]
    columns_WFN: list[Any]
    num: int

    def gradient(self, x_F: Tensor, rank: int) -> Tensor:
        """Return the gradient of the mean loss over this rank's rows plus the l2 term."""
        margin_N = self.rows_WNF[rank] @ x_F.numpy()
        pull_N = -expit(-margin_N) / len(margin_N)
        return torch.from_numpy(self.columns_WFN[rank] @ pull_N).add_(x_F, alpha=1 / self.num)

    def loss(self, x_F: Tensor) -> float:
        """Return the loss over all rows, summed in double precision."""
        margins = [rows_NF @ x_F.numpy() for rows_NF in self.rows_WNF]
        total = sum(float(np.logaddexp(0, -m_N.astype(np.float64)).sum()) for m_N in margins)
        return (total + float(x_F.double() @ x_F.double()) / 2) / self.num


@cache
def problem(name: str) -> tuple[Problem, float, float]:
    """Return a LIBSVM data set, its optimum by Newton's method, and the gradient's Lipschitz constant."""
    loaded: Any = load_svmlight_file(str(data_root(None) / "libsvm" / name), n_features=FEATURES[name])
    num = loaded[0].shape[0]
    labels = sparse.diags(np.where(loaded[1] > 0, 1.0, -1.0))
    rows_NF: Any = labels @ sparse.hstack([loaded[0], np.ones((num, 1))]).tocsr()
    x_F = np.zeros(rows_NF.shape[1])
    for _ in range(60):
        p_N = expit(-(rows_NF @ x_F))
        hessian = (rows_NF.T @ sparse.diags(p_N * (1 - p_N)) @ rows_NF).toarray() + np.eye(len(x_F))
        step_F = np.linalg.solve(hessian, x_F - rows_NF.T @ p_N)
        x_F -= step_F
        if np.abs(step_F).max() < 1e-12:
            break
    largest = (0.25 * float(np.linalg.eigvalsh((rows_NF.T @ rows_NF).toarray()).max()) + 1) / num
    best = (float(np.logaddexp(0, -(rows_NF @ x_F)).sum()) + float(x_F @ x_F) / 2) / num
    order = np.random.default_rng(0).permutation(num)
    parts = [rows_NF[at].astype(np.float32) for at in np.array_split(order, RANKS)]
    return Problem(parts, [part.T.tocsr() for part in parts], num), best, largest


@dataclass
class Row:
    """The result of one reducer on one problem."""

    problem: str
    reducer: str
    options: str
    memory: str
    steps: int
    bytes_a_step: float
    """Bytes sent per step and rank, averaged over the ranks."""
    dense_over: float
    """The ratio of the bytes of exact to these."""
    final: float
    """The gap to the optimum (convex), or the accuracy (cnn), after all steps."""
    at_budget: float
    """The gap, or the training loss (cnn), at the step where the bytes sent reach the budget."""
    reduce_ms: float
    """Time of a step's reduction, all simulated ranks in sequence (convex), or of the whole step (cnn)."""


def convex(case: tuple[str, str, str]) -> Row:
    """Minimise one problem with one reducer."""
    name, reducer, memory = case
    torch.set_num_threads(1)
    task, best, lipschitz = problem(name)
    steps, features = STEPS[name, memory], task.rows_WNF[0].shape[1]
    seconds: list[float] = []

    def work(wire: Wire) -> list[tuple[int, float]]:
        feedback = ErrorFeedback(
            registry.load("reducers", reducer)(**settings(reducer)),
            Layout.of([("x", (features,))]),
            memory="none" if memory == "none" else "residual",
        )
        x_F, curve = torch.zeros(features), []
        for step in range(steps):
            if step % EVERY == 0:
                feedback.reducer.begin_epoch(step // EVERY, 1 / lipschitz, wire)
            gradient_F = task.gradient(x_F, wire.rank)
            start = time.perf_counter()
            mean_F = feedback(gradient_F, wire).mean_N
            seconds.append(time.perf_counter() - start)
            x_F.sub_(mean_F, alpha=RATE[name] * min(1.0, 2 * (1 - step / steps)) / lipschitz)
            if (step + 1) % EVERY == 0:
                curve.append((wire.ledger.sent, task.loss(x_F) / best - 1 if wire.rank == 0 else math.nan))
        return curve

    ranks = simulate(RANKS, work)
    dense = 2 * (RANKS - 1) / RANKS * 4 * features
    sent = statistics.fmean(curve[-1][0] for curve in ranks) / steps
    within = [gap for bytes_sent, gap in ranks[0] if bytes_sent <= SHARE * dense * steps]
    return Row(
        name,
        reducer,
        json.dumps(settings(reducer)),
        memory,
        steps,
        round(sent, 1),
        round(dense / max(sent, 1e-9), 2),
        ranks[0][-1][1],
        within[-1] if within else ranks[0][0][1],
        round(1e3 * statistics.fmean(seconds), 3),
    )


# CNN

CNN_STEPS = 320
TIMED_STEPS = 60


def train(name: str, reducer: str, steps: int) -> Path:
    """Train ResNet-20 with one reducer in the engine itself; return the run's folder."""
    overrides = {
        "reducer": reducer,
        "reducer_options": settings(reducer, net=True),
        "world_size": 2,
        "workers_in_process": True,
        "batch_size": 16,
        "data_options": {"limit_train": 2560, "limit_test": 1000},
        "steps": steps,
        "epochs": 4.0,
        "eval_every": 4.0,
        "lr": 0.05,
        "schedule": "cosine",
        "milestones": [],
        "warmup_epochs": 0,
        "runs": Path("runs/quality"),
    }
    config = load(name, overrides=overrides)
    assert run.main(config) == 0, f"{reducer} failed: see its output above"
    return resolve(config).folder


def cnn(case: tuple[str, str, str]) -> Row:
    """Train ResNet-20 with one reducer, and compare what it reached with what it sent."""
    name, reducer, _ = case
    folder = train(name, reducer, CNN_STEPS)
    result = json.loads((folder / "result.json").read_text())
    steps = [record for record in read_metrics(folder) if record["kind"] == "step"]
    dense = 4 * result["parameters"]  # a rank sends 2(W-1)/W times the parameters; W = 2
    sent = 0
    losses: list[float] = []
    for step in steps:
        sent += step["wire_sent"]
        if sent > SHARE * dense * CNN_STEPS and len(losses) >= EVERY:
            break
        losses.append(step["loss"])
    return Row(
        name,
        reducer,
        json.dumps(settings(reducer, net=True)),
        "own",
        CNN_STEPS,
        round(result["wire_sent_per_step"], 1),
        round(dense / result["wire_sent_per_step"], 2),
        result["final"]["accuracy"],
        statistics.fmean(x if x is not None else math.inf for x in losses[-EVERY:]),
        round(1e3 * result["step_seconds"]["p50"], 1),
    )


# Measurement and table


def cases(what: str, names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return the combinations to measure: problem, reducer, memory."""
    if what == "cnn":
        return [("resnet20-cifar10", name, "own") for name in names]
    return [(task, name, memory) for task, memory in STEPS for name in names]


def measure(what: str, names: Sequence[str], jobs: int) -> None:
    """Measure in several processes and write each row when it is complete."""
    path = RESULTS / f"quality-{what}.csv"
    old = {(row["problem"], row["reducer"], row["memory"]): row for row in read(path)}
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, maxtasksperchild=8) as pool:
        for row in pool.imap_unordered(convex if what == "convex" else cnn, cases(what, names)):
            values = {name: str(value) for name, value in asdict(row).items()}
            old[row.problem, row.reducer, row.memory] = values
            write(path, [row for _, row in sorted(old.items())])
            print(f"{row.problem:18}{row.reducer:18}{row.memory:10}{row.final:.3g}", flush=True)


def measure_times(names: Sequence[str]) -> None:
    """Measure the time of a step again, one run after the other, for the rows that are there."""
    path = RESULTS / "quality-cnn.csv"
    rows = read(path)
    for row in rows:
        if row["reducer"] not in names:
            continue
        result = json.loads((train(row["problem"], row["reducer"], TIMED_STEPS) / "result.json").read_text())
        row["reduce_ms"] = str(round(1e3 * result["step_seconds"]["p50"], 1))
        write(path, rows)
        print(f"{row['reducer']:22}{row['reduce_ms']:>8} ms", flush=True)


def read(path: Path) -> list[dict[str, str]]:
    """Read the measured rows."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write the measured rows, of which there is at least one."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def table() -> str:
    """Return a Markdown table with one row per reducer and the three problems side by side."""
    rows = {
        (row["problem"], row["reducer"], row["memory"]): row
        for what in ("convex", "cnn")
        for row in read(RESULTS / f"quality-{what}.csv")
    }
    heading = [
        "reducer",
        "settings",
        "a9a: compression",
        "gap",
        "gap without error feedback",
        "gap at budget",
    ]
    heading += ["w8a: gap", "ResNet-20: compression", "accuracy", "loss at budget", "ms per step"]
    lines = [heading, ["---", "---", *["---:"] * (len(heading) - 2)]]
    for name in sorted({reducer for _, reducer, _ in rows}):
        kept, lost = rows.get(("a9a", name, "residual")), rows.get(("a9a", name, "none"))
        wide, net = rows.get(("w8a", name, "residual")), rows.get(("resnet20-cifar10", name, "own"))
        convex = _format_options(kept)
        lines.append(
            [
                f"`{name}`",
                convex
                if _format_options(net) == convex
                else f"{convex}; ResNet-20: {_format_options(net)}".removeprefix("; "),
                _cell(kept, "dense_over", "{:.1f}×"),
                _cell(kept, "final", "{:.1e}"),
                _cell(lost, "final", "{:.1e}"),
                _cell(kept, "at_budget", "{:.1e}"),
                _cell(wide, "final", "{:.1e}"),
                _cell(net, "dense_over", "{:.1f}×"),
                _cell(net, "final", "{:.3f}"),
                _cell(net, "at_budget", "{:.2f}"),
                _cell(net, "reduce_ms", "{:.0f}"),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _format_options(row: Mapping[str, str] | None) -> str:
    options = json.loads(row["options"]) if row else {}
    brief = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in options.items()}
    return " ".join(f"{name}={value}" for name, value in brief.items())


def _cell(row: Mapping[str, str] | None, name: str, form: str) -> str:
    if row is None:
        return ""
    value = float(row[name])
    return (
        form.format(max(value, 0.0) if name != "reduce_ms" else value) if math.isfinite(value) else "diverged"
    )


def main() -> int:
    """Measure, or print the measured rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("convex", "cnn", "times", "table"))
    parser.add_argument("--reducers", nargs="+", help="measure only these; their rows replace older ones")
    parser.add_argument("--jobs", type=int, default=2, help="number of concurrent processes")
    given = parser.parse_args()
    if given.what == "table":
        print(table())
    elif given.what == "times":
        measure_times(given.reducers or reducers())
    else:
        measure(given.what, given.reducers or reducers(), given.jobs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
