"""The verdict as text: what to run, how much faster it is, and the measurements behind it."""

import math

from sage.bench.advise.verdict import Measured, Verdict
from sage.output.units import duration, rate, times
from sage.predict.table import table


def text(verdict: Verdict) -> str:
    """Return the verdict in a few lines, and a table of the measured set-ups."""
    where = f"{verdict.workload} on {_count(verdict.ranks, 'rank')} of {_count(verdict.nodes, 'node')}"
    command = f"sage run {verdict.workload} {verdict.recommended.flags}"
    lines = [f"{where}: {verdict.word}", "", f"    {command}", ""]
    lines += [_pays(verdict)] if verdict.word == "pays" else _nothing(verdict)
    return "\n".join([*lines, "", _table(verdict), ""])


def _pays(verdict: Verdict) -> str:
    best, reference = verdict.recommended, verdict.reference
    return (
        f"It is {_faster(best)} as the reference, {reference.flags}: 95 % interval over {best.rounds} rounds "
        f"of {_count(best.steps, 'step')}."
    )


def _nothing(verdict: Verdict) -> list[str]:
    """Name the reference, the best of the others, and what would have to change."""
    others = [each for each in verdict.measured if not each.is_dense]
    lines = []
    if others:
        best = max(others, key=lambda each: each.speedup)
        lines.append(
            f"This is the reference. The fastest compressing set-up, {best.flags}, is {_faster(best)}: 95 % "
            f"interval over {best.rounds} rounds of {_count(best.steps, 'step')}."
        )
    if verdict.pays_below == math.inf:
        lines.append(
            f"By the prediction, {verdict.pays_with} pays on this model at every bandwidth; the measurement "
            "does not confirm it."
        )
    elif verdict.pays_below is None:
        lines.append("By the prediction, no verified set-up pays on this model at any bandwidth.")
    else:
        lines.append(
            f"By the prediction, {verdict.pays_with} pays on this model where the links have less than "
            f"{rate(verdict.pays_below)}."
        )
    return lines


def _table(verdict: Verdict) -> str:
    return table(
        ["set-up", "step", "predicted", "speed-up (95 % interval)"],
        [
            [each.flags, duration(each.seconds), duration(each.predicted_seconds), _shown(each, verdict)]
            for each in verdict.measured
        ],
    )


def _shown(each: Measured, verdict: Verdict) -> str:
    return "reference" if each.flags == verdict.reference.flags else _speedup(each)


def _faster(each: Measured) -> str:
    numbers = (f"{value:.2f}" for value in (each.speedup, each.speedup_low, each.speedup_high))
    return "{} ({} to {}) times as fast".format(*numbers)


def _speedup(each: Measured) -> str:
    return f"{times(each.speedup)} ({times(each.speedup_low)} to {times(each.speedup_high)})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
