"""The table of the times to the target: one row per setting, with ratios to the dense reference."""

import math

from sage.output.units import MISSING, duration, number, times
from sage.report.groups import Group
from sage.report.paired_ratio import PairedRatio
from sage.report.reference import about_references
from sage.report.table import Table
from sage.report.time_to_target.verdicts import Judged, judge

TITLE = "Time to target"

NOTE = (
    "Time to target: wall-clock seconds, with evaluations, until the first evaluation at which the metric "
    "reached a target that was fixed before the runs; a run that misses it takes infinitely long (∞). "
    "Seconds are medians with the range over seeds. Ratios are to the reference, paired by seed; their "
    "interval is Student's t on logarithms, 95 %, or the range if a run missed. A setting pays if the "
    "interval of its time ratio is below 1 and at least 6 seeds are paired; 3 to 5 are a smoke test."
)


def target_table(group: Group) -> Table:
    """Return the table; it has no lines for a group without a target."""
    judgement = judge(group)
    lines = () if judgement is None else judgement.lines
    note = ""
    if judgement is not None and group.target is not None:
        sign = "≥" if group.better == "max" else "≤"
        target = f"Target: {group.metric} {sign} {number(group.target.value)} ({group.target.origin})."
        reference = about_references([] if judgement.reference is None else [judgement.reference])
        note = f"{reference} {target} {group.target.tuning}".rstrip()
    return Table(
        title=TITLE,
        note=note,
        heading=[
            *("reducer", "verdict", "reached", "seconds", "steps"),
            *("steps ratio", "its interval", "time ratio", "95 % interval", "pairs"),
        ],
        lines=[_line(line) for line in lines],
        hints=["\n".join(row.values["folder"] for row in line.setting.rows[:5]) for line in lines],
        series=[line.setting.label for line in lines],
    )


def _line(line: Judged) -> list[str]:
    ratios = [*_ratio(line.steps_ratio), *_ratio(line.time_ratio)]
    if line.verdict == "reference":
        ratios = [times(1), MISSING, times(1), MISSING]
    return [
        line.setting.label,
        line.verdict,
        f"{line.num_reached} of {len(line.seconds)}",
        _range(line),
        _count(line.median_steps),
        *ratios,
        str(line.time_ratio.num),
    ]


def _range(line: Judged) -> str:
    values = sorted(line.seconds.values())
    middle = _seconds(line.median_seconds)
    return middle if len(values) == 1 else f"{middle} ({_seconds(values[0])} to {_seconds(values[-1])})"


def _seconds(value: float) -> str:
    return duration(value) if math.isfinite(value) else "∞"


def _count(value: float) -> str:
    return number(value, 6) if math.isfinite(value) else "∞"


def _ratio(ratio: PairedRatio) -> list[str]:
    if not ratio.num:
        return [MISSING, f"none: {'no run reached it' if ratio.num_undefined else ratio.how}"]
    middle = _times(ratio.centre)
    if ratio.interval is None:
        return [middle, "none: one pair"]
    return [middle, f"{_times(ratio.interval[0])} to {_times(ratio.interval[1])}"]


def _times(ratio: float) -> str:
    return MISSING if math.isnan(ratio) else times(ratio) if math.isfinite(ratio) else "∞"
