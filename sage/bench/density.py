"""`sage bench density`: replay recorded gradients through SAGE's controllers, and see what density they hold.

A replay is the reducer itself, with error feedback, on simulated ranks: what it is handed comes from a trace
instead of a model. Nothing waits for a network, and everything it sends is counted as ever.
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
from sage.bench.density_result import Held
from sage.bench.record import check_size
from sage.bench.rules import RIGHT, RULES
from sage.bench.trace import Trace, is_run, load, record_run
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.sage import Sage
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout

WARM = 50
"""Steps that a controller has to settle before its density is judged, or the scale jumps."""
TOLERANCE = 0.2
"""How far a density may be off its target."""
STAYS = 5
"""A controller has settled when so many steps in a row are within the tolerance."""
UP, DOWN = JUMPS = 10.0, 0.1
"""Factors by which the gradient's scale jumps after the warm steps."""


@dataclass(frozen=True)
class Replay:
    """What a replay saw at each step."""

    density: list[float]
    """On average over the ranks."""
    longest: list[int]
    """The most elements that a rank sent."""
    counts: list[float]
    """The elements that a rank sent on average."""
    own: int
    """Bytes of values and indices of all ranks and steps after the warm ones."""
    handed: int
    """Bytes of every kind."""


Seen = tuple[float, int, int, int]
"""What a rank saw of a step: density, elements sent, bytes of values and indices, bytes of every kind."""


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
    """Replay the traces, print the table, and write it with its figure where a folder is given.

    Args:
        traces: files of `sage bench record`, or folders of runs to record now.
        steps: how many to record of a run's folder.
        elements: keep at most so many of each gradient.
        rules: the controllers, of `RULES`.
        exchange: how selections are sent, as `sage run` has it.
        output: where density.md, density.csv and density.svg go.
        drawn: those of the controllers that are drawn; none given: all.

    Raises:
        ValueError: where an argument or a trace cannot be used.
    """
    check_size(steps, elements)
    drawn = drawn or rules
    if missing := [rule for rule in drawn if rule not in rules]:
        raise ValueError(f"--drawn {', '.join(missing)}: only what is in --rules can be drawn")
    torch.set_num_threads(1)
    size = {"steps": steps, "elements": elements}
    held: list[Held] = []
    for path in traces:
        trace = record_run(path, **size) if is_run(path) else load(path)
        if len(trace) < WARM + 2 * STAYS:
            raise ValueError(
                f"{path} has {len(trace)} steps: {WARM} are for settling, and {2 * STAYS} or more must follow"
            )
        if (trace.name, trace.world_size, trace.first) in ((h.trace, h.ranks, h.first) for h in held):
            raise ValueError(f"{path} is of the same workload, ranks and step as another: leave one out")
        for density in densities:
            for rule in rules:
                held.append(hold(trace, density, rule, exchange))
                print(table.line(held[-1]), flush=True)
        if output:  # after each trace, as the next may take an hour
            write(held, output, drawn)
    return 0


def write(held: Sequence[Held], folder: Path, drawn: Sequence[str]) -> None:
    """Write the tables, the results as CSV, and a figure of some controllers."""
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_text(folder / "density.md", table.markdown(held))
    table.write_csv(held, folder / "density.csv")
    seen = [each for each in held if each.rule in drawn]
    storage.write_text(folder / "density.svg", figure.density_by_step(seen, TOLERANCE))


def hold(trace: Trace, density: float, rule: str, exchange: str) -> Held:
    """Replay one rule at one density: as recorded, with a jump of the scale, with a fall."""
    options = {"density": density, "exchange": exchange, **RULES[rule]}
    if options.get("threshold") == RIGHT:
        options["threshold"] = right_threshold(trace, density)
    replays = replay(trace, options)
    curves = {factor: [had / density for had in seen.density] for factor, seen in replays.items()}
    as_it_was, curve = replays[1.0], curves[1.0]
    late = curve[WARM:]
    seconds, plain = cost(trace, options)
    return Held(
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
        padding=sum(as_it_was.longest[WARM:]) / max(1e-9, sum(as_it_was.counts[WARM:])),
        sent=as_it_was.handed / max(1, as_it_was.own),
        seconds=seconds,
        over_select=seconds / plain,
        curve=curve,
    )


def replay(trace: Trace, options: dict[str, Any]) -> dict[float, Replay]:
    """Reduce a trace's gradients on as many simulated ranks as it has, as they are and with each jump.

    All replays have the steps before the jump in common.
    """
    n = trace.codes_SWN.shape[2]

    def work(wire: Wire) -> dict[float, list[Seen]]:
        feedbacks = {1.0: ErrorFeedback(Sage(**options), Layout.of([("trace", (n,))]), memory="residual")}
        seen: dict[float, list[Seen]] = {1.0: []}
        for step in range(len(trace)):
            if step == WARM:
                feedbacks |= {jump: deepcopy(feedbacks[1.0]) for jump in JUMPS}
                seen |= {jump: list(seen[1.0]) for jump in JUMPS}
            gradient_N = trace.gradient(step, wire.rank)
            for factor, feedback in feedbacks.items():
                seen[factor].append(_reduce(feedback, factor * gradient_N, wire))
        return seen

    ranks = simulate(trace.world_size, work)
    return {factor: _summed([rank[factor] for rank in ranks]) for factor in ranks[0]}


def _reduce(feedback: ErrorFeedback, gradient_N: Tensor, wire: Wire) -> Seen:
    before = wire.ledger.copy()
    reduced = feedback(gradient_N, wire)
    payload = wire.ledger.since(before).payload
    assert reduced.sent is not None
    own = payload["values"] + payload["indices"]
    return reduced.density, reduced.sent.numel(), own, sum(payload.values())


def _summed(ranks: Sequence[Sequence[Seen]]) -> Replay:
    by_step = list(zip(*ranks, strict=True))
    return Replay(
        density=[step[0][0] for step in by_step],
        longest=[max(rank[1] for rank in step) for step in by_step],
        counts=[statistics.fmean(rank[1] for rank in step) for step in by_step],
        own=sum(rank[2] for step in by_step[WARM:] for rank in step),
        handed=sum(rank[3] for step in by_step[WARM:] for rank in step),
    )


def right_threshold(trace: Trace, density: float) -> float:
    """The mean over ranks of the magnitude above which the density's share of the first gradient lies."""
    firsts = [trace.gradient(0, rank).abs() for rank in range(trace.world_size)]
    k = max(1, round(density * firsts[0].numel()))
    return statistics.fmean(float(first_N.topk(k).values.min()) for first_N in firsts)


def cost(trace: Trace, options: dict[str, Any]) -> tuple[float, float]:
    """Seconds of taking by the controller, and by a given threshold: medians over rank 0's steps.

    Both are timed on the same gradients and residuals, in turn.
    """
    controller = Sage(**options).controller
    residual_N = torch.zeros(trace.codes_SWN.shape[2])
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
    """Steps until so many in a row are within the tolerance; None where they never are."""
    good = _within(curve)
    return next((step for step in range(len(good) - STAYS + 1) if all(good[step : step + STAYS])), None)


def _within(curve: Sequence[float]) -> list[bool]:
    return [abs(had - 1) <= TOLERANCE for had in curve]
