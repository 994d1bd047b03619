"""The verdicts of a group as plain values, for JSON."""

import math
from typing import Any

from sage.report.groups import Group
from sage.report.paired_ratio import PairedRatio
from sage.report.time_to_target.profiles import profile
from sage.report.time_to_target.verdicts import Judged, judge


def time_to_target(group: Group) -> dict[str, Any] | None:
    """Return target, reference and the line of each setting; None for a group without a target.

    A time, a number of steps or a ratio that is infinite is None.
    """
    judgement = judge(group)
    if judgement is None or group.target is None:
        return None
    return {
        "target": group.target.value,
        "origin": group.target.origin,
        "tuning": group.target.tuning or None,
        "reference": None if judgement.reference is None else judgement.reference.label,
        "settings": [_line(line) for line in judgement.lines],
    }


def _line(line: Judged) -> dict[str, Any]:
    ratios = list(line.time_ratio.ratios.values())
    return {
        "setting": line.setting.label,
        "verdict": line.verdict,
        "seconds": {seed: _finite(value) for seed, value in line.seconds.items()},
        "steps": {seed: _finite(value) for seed, value in line.steps.items()},
        "steps_ratio": _ratio(line.steps_ratio),
        "time_ratio": _ratio(line.time_ratio),
        "profile_score": profile(ratios).score if ratios else None,
    }


def _ratio(ratio: PairedRatio) -> dict[str, Any]:
    interval = ratio.interval
    return {
        "centre": _finite(ratio.centre),
        "interval": None if interval is None else list(map(_finite, interval)),
        "how": ratio.how,
        "strength": ratio.strength,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
