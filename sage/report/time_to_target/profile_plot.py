"""The performance profile of a report. The docstring is the figure's caption in the page."""

import math

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sage.output.units import percent, times
from sage.report.axes import DistinctLabels
from sage.report.curves import Canvas, Drawing
from sage.report.svg import MUTED
from sage.report.time_to_target.profiles import MAX_TAU, profile
from sage.report.time_to_target.verdicts import judge


def time_profile(canvas: Canvas) -> Drawing | None:
    """Share of the seeds in which a setting reached the target within τ times the time of the reference with
    the same seed. Left of 1, the setting is faster; where the curve stays below 100 %, it took longer than
    4 times, or missed the target."""
    judgement = judge(canvas.group)
    drawn = set(canvas.settings)
    lines = [
        line
        for line in (judgement.lines if judgement else ())
        if line.setting in drawn and line.verdict != "reference" and line.time_ratio.num
    ]
    if not lines:
        return None
    axes = canvas.figure.subplots()
    profiles = [(line, profile(list(line.time_ratio.ratios.values()))) for line in lines]
    fastest = min((curve.taus[0] for _, curve in profiles if curve.taus), default=1.0)
    # The least power of 2 that shows the fastest, and at least a factor of 2.
    first = 2.0 ** min(-1, math.floor(math.log2(fastest)) if fastest > 0 else -1)
    for line, curve in profiles:
        style = canvas.line_styles[line.setting.label]
        taus = [first, *(max(tau, first) for tau in curve.taus), MAX_TAU]
        shares = [0.0, *curve.shares, curve(MAX_TAU)]
        axes.step(taus, shares, where="post", markevery=list(range(1, len(taus) - 1)), **style.line)
    axes.axvline(1, color=MUTED, linewidth=1)
    axes.set(xscale="log", xlim=(first, MAX_TAU), ylim=(-0.03, 1.03))
    axes.set(xlabel="τ: time to the target, relative to the reference", ylabel="share of seeds")
    ticks = [2.0**power for power in range(round(math.log2(first)), 3)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: times(value)))
    axes.yaxis.set_major_formatter(DistinctLabels(percent))
    return Drawing([line.setting for line in lines])
