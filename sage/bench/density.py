"""`sage bench density`: replay recorded gradients through SAGE's controllers, and measure their densities.

A replay runs the reducer with error feedback on simulated ranks, with gradients from a trace instead of a
model. No network is involved; payload is counted as in a run.
"""
# S = steps, W = ranks, N = elements of the trace

import statistics
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sage import ops, storage
from sage.bench import figure, table
from sage.bench.density_result import DensityResult
from sage.bench.gradients import Gradients
from sage.bench.record import check_size
from sage.bench.recorded import load_or_record
from sage.bench.rules import RIGHT, RULES
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.sage import Sage
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout

WARM = 50
"""Steps for a controller to settle, before its density is evaluated and before the scale jumps."""
TOLERANCE = 0.2
"""The allowed relative deviation of a density from its target."""
STAYS = 5
"""The number of consecutive steps within the tolerance after which a controller counts as settled."""
UP, DOWN = JUMPS = 10.0, 0.1
"""Factors by which the gradient's scale jumps after the warm-up steps."""


@dataclass(frozen=True)
class Replay:
    """The measurements of a replay, by step."""

    density: list[float]
    """Achieved density, averaged over the ranks."""
    longest: list[int]
    """The largest number of elements sent by a rank."""
    counts: list[float]
    """The mean number of elements sent by a rank."""
    selection_bytes: int
    """Bytes of values and indices, of all ranks and all steps after the warm-up."""
    sent_bytes: int
    """Payload bytes of every kind, likewise."""


StepResult = tuple[float, int, int, int]
"""One rank's step: density, elements sent, bytes of values and indices, payload bytes of every kind."""


def main(
    traces: Sequence[Path],
    *,
    steps: int,
    elements: int,
    densities: Sequence[float],
    rules: Sequence[str],
    exchange: str,
    output: Path | None,
    drawn: Sequence[str],
) -> int:
    """Replay the traces, print the table, and write it with its figure if a folder is given.

    Args:
        traces: files of `sage bench record`, .npy vectors in a folder, or run folders to record now.
        steps: number of steps to record of a run folder.
        elements: maximum number of elements kept of each gradient.
        densities: target densities.
        rules: the controllers, from `RULES`.
        exchange: how selections are sent; an option of the reducer `sage`.
        output: the folder of density.md, density.csv and density.svg.
        drawn: the controllers in the figure; empty: all.

    Raises:
        ValueError: an argument or a trace cannot be used.
        sage.storage.NotWritten: (an OSError) the output cannot be written; raised before the first replay.
    """
    check_size(steps, elements)
    drawn = drawn or rules
    if missing := [rule for rule in drawn if rule not in rules]:
        raise ValueError(f"--drawn {', '.join(missing)}: allowed are the controllers in --rules")
    if output:
        storage.check_writable(output)
    torch.set_num_threads(1)
    size = {"steps": steps, "elements": elements}
    results: list[DensityResult] = []
    for path in traces:
        trace = load_or_record(path, **size)
        if len(trace) < WARM + 2 * STAYS:
            raise ValueError(f"{path} has {len(trace)} steps: {WARM + 2 * STAYS} or more are needed")
        if (trace.name, trace.world_size, trace.first) in (
            (result.trace, result.ranks, result.first) for result in results
        ):
            raise ValueError(f"{path} has the same workload, ranks and first step as another: leave one out")
        for density in densities:
            for rule in rules:
                results.append(measure_controller(trace, density, rule, exchange))
                print(table.line(results[-1]), flush=True)
        if output:  # after each trace, because the next may take an hour
            write(results, output, drawn)
    return 0


def write(results: Sequence[DensityResult], folder: Path, drawn: Sequence[str]) -> None:
    """Write the tables, the CSV and a figure of the drawn controllers."""
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_text(folder / "density.md", table.markdown(results))
    table.write_csv(results, folder / "density.csv")
    shown = [result for result in results if result.rule in drawn]
    storage.write_text(folder / "density.svg", figure.density_by_step(shown, TOLERANCE))


def measure_controller(trace: Gradients, density: float, rule: str, exchange: str) -> DensityResult:
    """Replay one controller at one density: as recorded, and with a jump of the scale up and down."""
    options = {"density": density, "exchange": exchange, **RULES[rule]}
    if options.get("threshold") == RIGHT:
        options["threshold"] = right_threshold(trace, density)
    replays = replay(trace, options)
    curves = {
        factor: [achieved / density for achieved in result.density] for factor, result in replays.items()
    }
    unchanged, curve = replays[1.0], curves[1.0]
    late = curve[WARM:]
    seconds, plain = cost(trace, options)
    return DensityResult(
        trace=trace.name,
        ranks=trace.world_size,
        first=trace.first,
        steps=len(trace),
        density=density,
        rule=rule,
        mean=statistics.fmean(late),
        within=statistics.fmean(_within(late)),
        settles_up=settled(curves[UP][WARM:]),
        settles_down=settled(curves[DOWN][WARM:]),
        drop=trace.drop,
        settles_drop=None if trace.drop is None else settled(curve[trace.drop :]),
        padding=sum(unchanged.longest[WARM:]) / max(1e-9, sum(unchanged.counts[WARM:])),
        sent=unchanged.sent_bytes / max(1, unchanged.selection_bytes),
        seconds=seconds,
        over_select=seconds / plain,
        curve=curve,
    )


def replay(trace: Gradients, options: dict[str, Any]) -> dict[float, Replay]:
    """Reduce a trace's gradients on the trace's number of simulated ranks, unchanged and with each jump.

    All replays share the steps before the jump.
    """
    n = trace.elements

    def work(wire: Wire) -> dict[float, list[StepResult]]:
        feedbacks = {1.0: ErrorFeedback(Sage(**options), Layout.of([("trace", (n,))]), memory="residual")}
        steps: dict[float, list[StepResult]] = {1.0: []}
        for step in range(len(trace)):
            if step == WARM:
                feedbacks |= {jump: deepcopy(feedbacks[1.0]) for jump in JUMPS}
                steps |= {jump: list(steps[1.0]) for jump in JUMPS}
            gradient_N = trace.gradient(step, wire.rank)
            for factor, feedback in feedbacks.items():
                steps[factor].append(_reduce(feedback, factor * gradient_N, wire))
        return steps

    ranks = simulate(trace.world_size, work)
    return {factor: _summed([rank[factor] for rank in ranks]) for factor in ranks[0]}


def _reduce(feedback: ErrorFeedback, gradient_N: Tensor, wire: Wire) -> StepResult:
    before = wire.ledger.copy()
    reduced = feedback(gradient_N, wire)
    payload = wire.ledger.since(before).payload
    assert reduced.sent is not None
    own = payload["values"] + payload["indices"]
    return reduced.density, reduced.sent.numel(), own, sum(payload.values())


def _summed(ranks: Sequence[Sequence[StepResult]]) -> Replay:
    by_step = list(zip(*ranks, strict=True))
    return Replay(
        density=[step[0][0] for step in by_step],
        longest=[max(rank[1] for rank in step) for step in by_step],
        counts=[statistics.fmean(rank[1] for rank in step) for step in by_step],
        selection_bytes=sum(rank[2] for step in by_step[WARM:] for rank in step),
        sent_bytes=sum(rank[3] for step in by_step[WARM:] for rank in step),
    )


def right_threshold(trace: Gradients, density: float) -> float:
    """The mean over ranks of the k-th largest magnitude of the first gradient, k = density·N."""
    firsts = [trace.gradient(0, rank).abs() for rank in range(trace.world_size)]
    k = max(1, round(density * firsts[0].numel()))
    return statistics.fmean(float(first_N.topk(k).values.min()) for first_N in firsts)


def cost(trace: Gradients, options: dict[str, Any]) -> tuple[float, float]:
    """Median seconds of a selection by the controller, and by a given threshold, over rank 0's steps.

    Both are timed on the same gradients and residuals, in turn.
    """
    controller = Sage(**options).controller
    residual_N = torch.zeros(trace.elements)
    taken: list[tuple[float, float]] = []
    for step in range(len(trace)):
        grad_N, same_N = trace.gradient(step, 0), residual_N.clone()
        start = time.perf_counter()
        _, at_K = controller.take(grad_N, residual_N, options["density"])
        between = time.perf_counter()
        ops.take_above(grad_N, same_N, float(controller.threshold))
        taken.append((between - start, time.perf_counter() - between))
        controller.learn(at_K.numel() / grad_N.numel())
    late = taken[WARM:]
    return statistics.median(a for a, _ in late), statistics.median(b for _, b in late)


def settled(curve: Sequence[float]) -> int | None:
    """Steps until `STAYS` consecutive steps are within the tolerance; None: never."""
    good = _within(curve)
    return next((step for step in range(len(good) - STAYS + 1) if all(good[step : step + STAYS])), None)


def _within(curve: Sequence[float]) -> list[bool]:
    return [abs(achieved - 1) <= TOLERANCE for achieved in curve]
