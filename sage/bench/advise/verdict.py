"""The verdict: what to run, how much faster it is, and the measurements behind it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from sage.output.units import duration, rate, times
from sage.predict.table import table

Word = Literal["pays", "nothing pays"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A set-up with its measured step."""

    name: str
    """How to choose it: the options of `sage run`, or the line of a script."""
    is_dense: bool
    seconds: float
    """Median over the rounds of a step of the slowest rank."""
    predicted_seconds: float
    rounds: int
    steps: int
    """Steps of a round."""
    speedup: float
    """Geometric mean over the rounds of reference over set-up."""
    speedup_low: float
    speedup_high: float
    """The 95 % t-interval of the speed-up, on logarithms."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The recommended set-up, and the measurements behind it."""

    word: Word
    workload: str
    ranks: int
    nodes: int
    command: str
    """What to run, or the line to write in a script."""
    recommended: Measured
    """The fastest set-up whose interval lies above 1; else the reference."""
    reference: Measured
    """The faster of the dense set-ups that overlap with backward."""
    measured: tuple[Measured, ...]
    """All of them, the fastest first."""
    pays_below: float | None
    """Where nothing pays: the predicted bandwidth, in bits per second, below which a set-up would; None if it
    would at no bandwidth."""
    pays_with: str
    """The name of that set-up."""
    failed: tuple[str, ...] = ()
    """The reducers that failed and were left out, each with the reason."""

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the verdict that `to_dict` has converted."""
        measured = tuple(Measured(**values) for values in content["measured"])
        one = {name: Measured(**content[name]) for name in ("recommended", "reference")}
        failed = tuple(content.get("failed", ()))
        return cls(**{**content, **one, "measured": measured, "failed": failed})

    def __str__(self) -> str:
        where = f"{self.workload} on {_count(self.ranks, 'rank')} of {_count(self.nodes, 'node')}"
        lines = [f"{where}: {self.word}", "", f"    {self.command}", ""]
        lines += [_pays(self)] if self.word == "pays" else _nothing(self)
        left_out = [f"Left out: {line}" for line in self.failed]
        return "\n".join([*lines, "", _table(self), *(["", *left_out] if left_out else [])])


def _pays(verdict: Verdict) -> str:
    best, reference = verdict.recommended, verdict.reference
    return (
        f"It is {_faster(best)} as the reference, {reference.name}: 95 % interval over {best.rounds} rounds "
        f"of {_count(best.steps, 'step')}."
    )


def _nothing(verdict: Verdict) -> list[str]:
    """Name the reference, the best of the others, and what would have to change."""
    others = [setup for setup in verdict.measured if not setup.is_dense]
    if not others:
        return ["This is the reference. No compressing set-up could be measured."]
    best = max(others, key=lambda setup: setup.speedup)
    lines = [
        f"This is the reference. The fastest compressing set-up, {best.name}, is {_faster(best)}: 95 % "
        f"interval over {best.rounds} rounds of {_count(best.steps, 'step')}."
    ]
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
            [setup.name, duration(setup.seconds), duration(setup.predicted_seconds), _shown(setup, verdict)]
            for setup in verdict.measured
        ],
    )


def _shown(setup: Measured, verdict: Verdict) -> str:
    return "reference" if setup.name == verdict.reference.name else _speedup(setup)


def _faster(setup: Measured) -> str:
    numbers = (f"{value:.2f}" for value in (setup.speedup, setup.speedup_low, setup.speedup_high))
    return "{} ({} to {}) times as fast".format(*numbers)


def _speedup(setup: Measured) -> str:
    return f"{times(setup.speedup)} ({times(setup.speedup_low)} to {times(setup.speedup_high)})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
