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
    found = judge(group)
    if found is None or group.target is None:
        return None
    return {
        "target": group.target.value,
        "origin": group.target.origin,
        "tuning": group.target.tuning or None,
        "reference": None if found.reference is None else found.reference.label,
        "settings": [_line(line) for line in found.lines],
    }


def _line(each: Judged) -> dict[str, Any]:
    ratios = list(each.time_ratio.ratios.values())
    return {
        "setting": each.setting.label,
        "verdict": each.word,
        "seconds": {seed: _finite(value) for seed, value in each.seconds.items()},
        "steps": {seed: _finite(value) for seed, value in each.steps.items()},
        "steps_ratio": _ratio(each.steps_ratio),
        "time_ratio": _ratio(each.time_ratio),
        "profile_score": profile(ratios).score if ratios else None,
    }


def _ratio(found: PairedRatio) -> dict[str, Any]:
    interval = found.interval
    return {
        "centre": _finite(found.centre),
        "interval": None if interval is None else list(map(_finite, interval)),
        "how": found.how,
        "strength": found.strength,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
