"""Whether a setting pays: its time to the target against the dense reference's, paired by seed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from sage.report.groups import Group
from sage.report.paired_ratio import PairedRatio, paired_ratio
from sage.report.reference import by_seed, is_dense, reference_of
from sage.report.settings import Setting

Verdict = Literal["pays", "does not pay", "undecided", "smoke", "reference"]


@dataclass(frozen=True, eq=False)
class Judged:
    """A setting's times to the target and their ratios to the reference."""

    setting: Setting
    steps: dict[int, float]
    """Steps to the target by seed; infinite where the run missed it."""
    seconds: dict[int, float]
    steps_ratio: PairedRatio
    time_ratio: PairedRatio
    verdict: Verdict

    @property
    def num_reached(self) -> int:
        """Number of runs that reached the target."""
        return sum(math.isfinite(value) for value in self.seconds.values())

    @property
    def median_seconds(self) -> float:
        """The median over the runs, of which misses are infinite."""
        return median(self.seconds.values())

    @property
    def median_steps(self) -> float:
        """The median over the runs, of which misses are infinite."""
        return median(self.steps.values())


@dataclass(frozen=True, eq=False)
class Judgement:
    """The verdicts of a group that has a target."""

    reference: Setting | None
    lines: Sequence[Judged]


def judge(group: Group) -> Judgement | None:
    """Judge the settings of a group; None without a target, or if no run has reached or missed it."""
    if group.target is None:
        return None
    reference = reference_of(group.settings)
    lines = [
        _judged(setting, reference) for setting in group.settings if by_seed(setting, "seconds_to_target")
    ]
    return Judgement(reference, lines) if lines else None


def first_line(groups: Iterable[Group]) -> str:
    """State how many of the compressed settings pay; "" if none is judged.

    A setting pays if the interval of its paired time ratios is below 1 and there are at least six pairs.
    """
    judged = [line for group in groups if (found := judge(group)) for line in found.lines]
    verdicts = [line.verdict for line in judged if not is_dense(line.setting)]
    if not verdicts:
        return ""
    text = f"{verdicts.count('pays')} of {len(verdicts)} set-ups pay"
    smoke = verdicts.count("smoke")
    names: dict[Verdict, str] = {
        "does not pay": "do not" if verdicts.count("does not pay") > 1 else "does not",
        "undecided": "undecided",
        "smoke": f"smoke test{'s' if smoke > 1 else ''} (3 to 5 seeds)",
    }
    rest = [f"{verdicts.count(verdict)} {name}" for verdict, name in names.items() if verdict in verdicts]
    return text + (f"; {', '.join(rest)}." if rest else ".")


def _judged(setting: Setting, reference: Setting | None) -> Judged:
    steps, seconds = _to_target(setting)
    reference_steps, reference_seconds = ({}, {}) if reference is None else _to_target(reference)
    time_ratio = paired_ratio(seconds, reference_seconds)
    return Judged(
        setting=setting,
        steps=steps,
        seconds=seconds,
        steps_ratio=paired_ratio(steps, reference_steps),
        time_ratio=time_ratio,
        verdict="reference" if setting is reference else _verdict(time_ratio),
    )


def _to_target(setting: Setting) -> tuple[dict[int, float], dict[int, float]]:
    return by_seed(setting, "steps_to_target"), by_seed(setting, "seconds_to_target")


def _verdict(ratio: PairedRatio) -> Verdict:
    if ratio.strength == "smoke":
        return "smoke"
    if ratio.strength == "too few" or ratio.interval is None:
        return "undecided"
    low, high = ratio.interval
    return "pays" if high < 1 else "does not pay" if low > 1 else "undecided"
