"""Where top-k stops on unequal data, by the memory: none, a residual, EF21 or EControl.

    SAGE_DATA_DIR=<folder with libsvm/> python benchmarks/error_feedback.py
    python benchmarks/error_feedback.py --table     # the measured floors as Markdown, and the figure again

Logistic regression on LIBSVM's mushrooms, on four simulated ranks with unequal data: the rows are sorted by
their label and cut at 1/10, 3/10 and 6/10, so that two ranks have rows of one class only. The objective is
f = 1/W Σ_i f_i, where f_i is the mean loss of rank i's rows plus l2/2 ‖x‖² with l2 = L/50, and L bounds the
curvature of every f_i. Full gradients, `topk` of the engine itself, a constant step size γ.

Written: results/error_feedback.csv with ‖∇f(x)‖² relative to its value at x = 0 by step, its floor (mean over
the last tenth of the steps) and the bound of theory in results/error_feedback_floors.csv, and the figure
docs/error_feedback.svg.
"""
# N = rows, F = features including the constant, W = ranks, T = steps

import argparse
import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import sparse
from scipy.special import expit
from sklearn.datasets import load_svmlight_file
from torch import Tensor

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.data.dataset import data_root
from sage.reducers.topk import TopK, num_kept
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.reduction.reducer import Memory
from sage.report.svg import PALETTE

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "error_feedback.svg"
CUTS = (0.1, 0.3, 0.6)
DENSITY = 1 / 8
CONDITION = 50.0
STEPS = 3000
RATES = (1.0, 0.25)
"""Step sizes in units of 1 / L."""
MEMORIES: tuple[Memory, ...] = ("none", "residual", "ef21", "econtrol")
LAST = STEPS // 10


@dataclass(frozen=True)
class Problem:
    """Logistic regression; each rank holds its rows, multiplied by their labels."""

    rows_WNF: list[Any]
    l2: float
    lipschitz: float

    def gradients(self, x_F: np.ndarray) -> list[np.ndarray]:
        """Return ∇f_i of every rank, in double precision."""
        return [self.gradient(x_F, rank) for rank in range(len(self.rows_WNF))]

    def hessian(self, x_F: np.ndarray) -> np.ndarray:
        """Return the Hessian of f."""
        total_FF = self.l2 * np.eye(len(x_F))
        for rows_NF in self.rows_WNF:
            p_N = expit(-(rows_NF @ x_F))
            weights = sparse.diags(p_N * (1 - p_N) / rows_NF.shape[0] / len(self.rows_WNF))
            total_FF += (rows_NF.T @ weights @ rows_NF).toarray()
        return total_FF

    def gradient(self, x_F: np.ndarray, rank: int) -> np.ndarray:
        """Return ∇f_i of one rank."""
        rows_NF = self.rows_WNF[rank]
        pull_N = -expit(-(rows_NF @ x_F)) / rows_NF.shape[0]
        return np.asarray(rows_NF.T @ pull_N + self.l2 * x_F)


def problem() -> Problem:
    """Return the data of the ranks, and the constants of the objective."""
    loaded: Any = load_svmlight_file(str(data_root(None) / "libsvm" / "mushrooms"), n_features=112)
    rows_NF, labels_N = loaded
    signs_N = np.where(labels_N > labels_N.mean(), 1.0, -1.0)
    order_N = np.argsort(signs_N, kind="stable")
    whole: Any = sparse.hstack([rows_NF, np.ones((rows_NF.shape[0], 1))]).tocsr()
    signed_NF = (sparse.diags(signs_N) @ whole).tocsr()[order_N]
    num = signed_NF.shape[0]
    cuts = [0, *(int(cut * num) for cut in CUTS), num]
    parts = [signed_NF[start:stop] for start, stop in zip(cuts, cuts[1:], strict=False)]
    curvature = max(
        0.25 * float(np.linalg.eigvalsh((part.T @ part).toarray()).max()) / part.shape[0] for part in parts
    )
    l2 = curvature / (CONDITION - 1)
    return Problem(parts, l2, curvature + l2)


@dataclass
class Floor:
    """Where a run stopped, and the bound of theory; squared gradient norms relative to that at x = 0."""

    memory: str
    rate: float
    """γL."""
    floor: float
    """‖∇f‖², mean over the last tenth of the steps."""
    spread: float
    """mean_i ‖∇f_i‖², mean over the last tenth of the steps."""
    bound: float
    """The bound of the floor; 0 where theory has the optimum as the limit."""
    predicted: float
    """With a residual: mean of ‖γH(ē − ⟨ē⟩)‖² over the same steps; not a number with another memory."""


def bound(memory: str, rate: float, spread: float, share: float) -> float:
    """Return the bound of ‖∇f‖² where a run stops, by the share δ of elements that are sent.

    Args:
        memory: The memory.
        rate: γL.
        spread: mean_i ‖∇f_i‖².
        share: δ, with ‖x − C(x)‖² ≤ (1 − δ)‖x‖².
    """
    if memory == "none":
        return (1 - share) * spread
    return rate**2 * 4 * (1 - share) / share**2 * spread if memory == "residual" else 0.0


def run(task: Problem, memory: Memory, rate: float) -> tuple[list[dict[str, Any]], Floor]:
    """Minimise from x = 0; return the curve and where it stopped."""
    features = task.rows_WNF[0].shape[1]
    share = num_kept(DENSITY, features) / features
    norms: list[tuple[float, float]] = []

    def work(wire: Wire) -> tuple[np.ndarray, list[np.ndarray]]:
        feedback = ErrorFeedback(
            TopK(density=DENSITY), Layout.of([("x", (features,))]), memory=memory, eta=DENSITY
        )
        x_F, errors = np.zeros(features), list[np.ndarray]()
        for step in range(STEPS):
            if feedback.residual_N is not None and step >= STEPS - LAST:
                errors.append(feedback.residual_N.double().numpy())
            if wire.rank == 0:
                all_WF = np.stack(task.gradients(x_F))
                norms.append((float((all_WF.mean(0) ** 2).sum()), float((all_WF**2).sum(1).mean())))
                own_F = all_WF[0]
            else:
                own_F = task.gradient(x_F, wire.rank)
            mean_F: Tensor = feedback(torch.from_numpy(own_F).float(), wire).mean_N
            x_F -= rate / task.lipschitz * mean_F.double().numpy()
        return x_F, errors

    ranks = simulate(len(CUTS) + 1, work)
    predicted = math.nan
    if memory == "residual":
        error_TF = np.stack([np.stack(errors) for _, errors in ranks]).mean(0)
        moved_TF = (error_TF - error_TF.mean(0)) @ task.hessian(ranks[0][0])
        predicted = (rate / task.lipschitz) ** 2 * float((moved_TF**2).sum(1).mean()) / norms[0][0]
    norms_T2 = np.array(norms) / norms[0][0]
    shown = sorted({*range(20), *np.unique(np.geomspace(20, STEPS - 1, 100).astype(int)).tolist()})
    curve = [
        {"memory": memory, "rate": rate, "step": step, "gradient": f"{norms_T2[step, 0]:.5g}"}
        for step in shown
    ]
    floor, spread = norms_T2[-LAST:].mean(0).tolist()
    limit = bound(memory, rate, spread, share)
    return curve, Floor(memory, rate, *(float(f"{x:.4g}") for x in (floor, spread, limit, predicted)))


def table(floors: Iterable[Mapping[str, str]]) -> str:
    """Return the floors as Markdown."""
    heading = ["memory", "γL", "floor of ‖∇f‖²", "predicted", "bound", "mean ‖∇f_i‖² there"]
    lines = [heading, ["---", *["---:"] * 5]]
    for row in floors:
        limit, predicted = float(row["bound"]), float(row["predicted"])
        lines.append(
            [
                f"`{row['memory']}`",
                f"{float(row['rate']):g}",
                f"{float(row['floor']):.1e}",
                "–" if math.isnan(predicted) else f"{predicted:.1e}",
                f"{limit:.1e}" if limit else "0",
                f"{float(row['spread']):.1e}",
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(curves: Iterable[Mapping[str, str]]) -> None:
    """Draw ‖∇f‖² by step: one colour per memory, one line style per step size."""
    lines: dict[tuple[str, float], list[tuple[int, float]]] = {}
    for row in curves:
        lines.setdefault((row["memory"], float(row["rate"])), []).append(
            (int(row["step"]), float(row["gradient"]))
        )
    colours: dict[str, str] = dict(zip(MEMORIES, PALETTE, strict=False))
    style: dict[Any, Any] = {"svg.hashsalt": "sage", "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.subplots()
        for (memory, rate), points in lines.items():
            axes.plot(
                [step for step, _ in points],
                [norm for _, norm in points],
                color=colours[memory],
                linestyle="-" if rate == RATES[0] else "--",
                linewidth=1,
                label=f"{memory}, γL = {rate:g}",
            )
        axes.set(xlabel="step", ylabel="‖∇f‖², relative to x = 0", yscale="log")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right center", frameon=False)
        figure.savefig(PICTURE, metadata={"Date": None}, facecolor="white")


def read(name: str) -> list[dict[str, str]]:
    """Read a measured CSV."""
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Write a CSV of results."""
    with (RESULTS / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the measured floors; draw the figure")
    if not parser.parse_args().table:
        torch.set_num_threads(1)
        task = problem()
        found = [run(task, memory, rate) for memory in MEMORIES for rate in RATES]
        write("error_feedback.csv", [row for curve, _ in found for row in curve])
        write("error_feedback_floors.csv", [asdict(floor) for _, floor in found])
    draw(read("error_feedback.csv"))
    print(table(read("error_feedback_floors.csv")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
