"""Compares the runs of one configuration in two result sets: bytes, step times and the final metric."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from sage.report.compare.comparability import differences
from sage.report.compare.pairs import Pairing
from sage.report.compare.step_ratio import StepRatio, step_ratio
from sage.report.run_summary import Figures
from sage.report.runs import Run
from sage.report.seeds import Spread, spread

Outcome = Literal["same", "better", "worse", "undecided", "not comparable"]
"""`same`: no difference that counts; `worse` is a regression; `undecided`: too few values for an interval."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison, and the figures that it rests on."""

    outcome: Outcome
    text: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison of one configuration."""

    label: str
    seeds: Sequence[int]
    """The seeds of which both runs are finished."""
    result: Verdict
    """Whether B has a result for every seed for which A has one."""
    bytes: Verdict
    time: Verdict
    accuracy: Verdict
    step_ratio: StepRatio | None
    metric: str
    metric_difference: Spread | None
    """B minus A over the pairs."""

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdicts by name."""
        return {"result": self.result, "bytes": self.bytes, "time": self.time, "accuracy": self.accuracy}

    @property
    def regressions(self) -> list[str]:
        """The names of the verdicts that are regressions."""
        return [name for name, verdict in self.verdicts.items() if verdict.outcome == "worse"]


def compare(pairing: Pairing, *, factor: float, force: bool) -> Comparison:
    """Compare the runs of one configuration.

    Args:
        factor: a time is a regression only if its ratio is above this, and its interval above 1.
        force: compare times even if machines, torch versions or links differ.
    """
    pairs = pairing.finished
    ratio = step_ratio(pairs)
    metric, accuracy, difference = _accuracy(pairs)
    return Comparison(
        label=pairing.label,
        seeds=sorted(pairs),
        result=_result(pairing),
        bytes=_bytes(pairs),
        time=_time(ratio, [] if force else differences(pairs.values()), factor),
        accuracy=accuracy,
        step_ratio=ratio,
        metric=metric,
        metric_difference=difference,
    )


def _result(pairing: Pairing) -> Verdict:
    lost = [f"seed {seed}: {b.reason}" for seed, (_, b) in pairing.pairs.items() if not b.is_finished]
    new = [seed for seed, (a, _) in pairing.pairs.items() if not a.is_finished]
    if lost:
        return Verdict("worse", f"B is not finished, {'; '.join(lost)}")
    return Verdict("better", f"only B is finished, seeds {new}") if new else Verdict("same", "both finished")


def _bytes(pairs: Mapping[int, tuple[Run, Run]]) -> Verdict:
    """Compare payload and traffic per step, which must be equal to the byte."""
    if not pairs:
        return Verdict("undecided", "no pair is finished")
    for seed, (a, b) in pairs.items():
        ours, theirs = _counts(a.figures), _counts(b.figures)
        for name in {**ours, **theirs}:
            one, other = ours.get(name), theirs.get(name)
            if one != other:
                return Verdict(
                    "worse", f"{name}: {_count(one)} and {_count(other)} bytes a step (seed {seed})"
                )
    return Verdict("same", "equal")


def _counts(figures: Figures) -> dict[str, float | None]:
    payload: dict[str, float | None] = {f"payload {kind}": n for kind, n in figures.payload_per_step.items()}
    return payload | {"sent": figures.wire_sent_per_step, "received": figures.wire_received_per_step}


def _count(value: float | None) -> str:
    return "no" if value is None else f"{value:,.15g}"


def _time(ratio: StepRatio | None, differing: Sequence[str], factor: float) -> Verdict:
    if ratio is None:
        return Verdict("undecided", "no recorded step times")
    text = f"{ratio.ratio:.3f}×"
    if ratio.interval is None:
        return Verdict("undecided", f"{text} ({ratio.how})")
    low, high = ratio.interval
    text += f" ({low:.3f} to {high:.3f}, {ratio.how})"
    if differing:
        return Verdict("not comparable", f"{text}; {'; '.join(differing)}")
    if low > 1 and ratio.ratio > factor:
        return Verdict("worse", text)
    return Verdict("better" if high < 1 and ratio.ratio < 1 / factor else "same", text)


def _accuracy(pairs: Mapping[int, tuple[Run, Run]]) -> tuple[str, Verdict, Spread | None]:
    """Compare the final metric: worse if the interval excludes 0 and the mean exceeds A's seed spread."""
    values = {
        seed: (a.figures.final, b.figures.final)
        for seed, (a, b) in pairs.items()
        if a.figures.final is not None and b.figures.final is not None
    }
    if not values:
        return "", Verdict("undecided", "no pair has the metric"), None
    figures = next(iter(pairs.values()))[0].figures
    sign = 1 if figures.better == "max" else -1
    lost = [s for s, (one, other) in values.items() if math.isfinite(one) and not math.isfinite(other)]
    finite = {s: both for s, both in values.items() if all(map(math.isfinite, both))}
    difference = spread(other - one for one, other in finite.values())
    if lost:
        return figures.metric, Verdict("worse", f"not finite in B, seeds {lost}"), difference
    if difference is None:
        return figures.metric, Verdict("undecided", "not finite in A"), None
    if all(one == other for one, other in finite.values()):
        return figures.metric, Verdict("same", f"equal ({difference.num} seeds)"), difference
    text = f"{difference.mean:+.4g}"
    among = spread(one for one, _ in finite.values())
    assert among is not None
    if difference.interval is None or among.sd is None:
        return figures.metric, Verdict("undecided", f"{text} (one seed, no spread)"), difference
    low, high = difference.interval
    text += f" ({low:+.4g} to {high:+.4g}, {difference.num} seeds; seed spread {among.sd:.2g})"
    excludes = low > 0 or high < 0
    outcome: Outcome = "same"
    if excludes and abs(difference.mean) > among.sd:
        outcome = "better" if sign * difference.mean > 0 else "worse"
    return figures.metric, Verdict(outcome, text), difference


def geometric_mean(comparisons: Sequence[Comparison]) -> float | None:
    """The geometric mean of the comparable step-time ratios; None if there are none."""
    ratios = [
        comparison.step_ratio.ratio
        for comparison in comparisons
        if comparison.step_ratio is not None and comparison.time.outcome != "not comparable"
    ]
    return math.exp(fmean(map(math.log, ratios))) if ratios else None
