"""Bar and dot plots of a report: one line per setting, means over its runs."""

import textwrap
from collections.abc import Sequence

import numpy
from matplotlib.axes import Axes

from sage.output.units import duration, percent, size
from sage.report.axes import DistinctLabels, from_zero, scale
from sage.report.curves import Canvas, Drawing
from sage.report.settings import Setting
from sage.report.svg import MUTED, PALETTE

LINES = 30
"""At most this many settings are drawn."""


def payload(canvas: Canvas) -> Drawing | None:
    """Payload that a rank passes to collectives per step: total bytes (dots) and composition (bars)."""
    settings = [setting for setting in canvas.settings if setting.mean("payload_bytes_per_step")]
    if not settings:
        return None
    settings, drawing = _some(settings)
    shares = []
    for setting in settings:
        total = setting.mean("payload_bytes_per_step")
        parts = {kind: setting.mean(f"payload_{kind}_bytes_per_step") for kind in canvas.group.kinds}
        shares.append({kind: part / total for kind, part in parts.items() if part and total})
    # A single dot shows no more than the table.
    *dots, of_what = _lines(canvas, settings, 1 if len(settings) == 1 else 2)
    for how_much in dots:
        totals = [setting.mean("payload_bytes_per_step") or 0.0 for setting in settings]
        for i, (setting, total) in enumerate(zip(settings, totals, strict=True)):
            style = canvas.line_styles[setting.label]
            how_much.plot(total, i, style.marker, color=style.colour, markersize=6)
            how_much.annotate(
                size(total), (total, i), (7, 0), textcoords="offset points", va="center", fontsize=8
            )
        scale(how_much, "x", totals, size, num_ticks=4)
        how_much.margins(x=0.08)
        is_log = how_much.get_xscale() == "log"
        low, high = how_much.get_xlim()
        # Leave room for the text on the right.
        how_much.set_xlim(low if is_log else 0, high * (high / low) ** 0.45 if is_log else 1.4 * high)
        how_much.set_xlabel("bytes, on a logarithmic axis" if is_log else "bytes")
        if not is_log:
            how_much.locator_params(axis="x", nbins=4)
    _stack(of_what, shares, canvas.group.kinds)
    of_what.set_xlabel("share of the payload")
    of_what.xaxis.set_major_formatter(DistinctLabels(percent))
    return drawing


def step_time(canvas: Canvas) -> Drawing | None:
    """Step time of the slowest rank. Dot: median; thick line: to the 95th percentile; thin: to the 99th."""
    settings = [setting for setting in canvas.settings if setting.mean("step_seconds_p50")]
    if len(settings) < 2:
        return None
    settings, drawing = _some(settings)
    (axes,) = _lines(canvas, settings, 1)
    for i, setting in enumerate(settings):
        p50, p95, p99 = (setting.mean(f"step_seconds_{q}") or 0.0 for q in ("p50", "p95", "p99"))
        style = canvas.line_styles[setting.label]
        axes.plot([p50, max(p50, p99)], [i, i], color=style.colour, linewidth=1.2)
        axes.plot([p50, max(p50, p95)], [i, i], color=style.colour, linewidth=4, solid_capstyle="butt")
        axes.plot(p50, i, style.marker, color=style.colour, markersize=7)
    from_zero(axes, duration)
    return drawing


def phases(canvas: Canvas) -> Drawing | None:
    """Time per phase of a step, mean over rank 0's steps. Recorded with --profile."""
    settings = [setting for setting in canvas.settings if any(row.run.steps.phases for row in setting.rows)]
    if not settings:
        return None
    settings, drawing = _some(settings)
    means = []
    for setting in settings:
        profiled = [row.run.steps.phases for row in setting.rows if row.run.steps.phases]
        names = dict.fromkeys(name for phases in profiled for name in phases)
        means.append(
            {name: sum(phases.get(name, 0.0) for phases in profiled) / len(profiled) for name in names}
        )
    (axes,) = _lines(canvas, settings, 1)
    _stack(axes, means, list(dict.fromkeys(name for phases in means for name in phases)))
    from_zero(axes, duration)
    return drawing


def _some(settings: Sequence[Setting]) -> tuple[list[Setting], Drawing]:
    left = len(settings) - LINES
    notes = [f"{left} more settings are not drawn; the table lists them."] if left > 0 else []
    return list(settings[:LINES]), Drawing(list(settings[:LINES]), notes)


def _lines(canvas: Canvas, settings: Sequence[Setting], num_axes: int) -> list[Axes]:
    """Create axes side by side with one line per setting, the first at the top."""
    canvas.figure.set_size_inches(5.6, max(1.9, 1.1 + 0.34 * len(settings)))
    grid = canvas.figure.subplots(1, num_axes, sharey=True, squeeze=False)
    for axes in grid.flat:
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    labels = [textwrap.fill(setting.label, 26, max_lines=2, placeholder=" …") for setting in settings]
    grid[0, 0].set_yticks(range(len(settings)), labels)
    grid[0, 0].set_ylim(len(settings) - 0.5, -0.5)
    return list(grid.flat)


def _stack(axes: Axes, parts: Sequence[dict[str, float]], names: Sequence[str]) -> None:
    """Draw stacked bars and a legend of their parts above them."""
    left_R = numpy.zeros(len(parts))
    for i, name in enumerate(names):
        width_R = numpy.array([values.get(name, 0.0) for values in parts])
        # Parts beyond the palette's six colours are hatched, so that all are distinct.
        hatch = ("", "////", "....", "xxxx")[i // len(PALETTE) % 4]
        axes.barh(
            range(len(parts)),
            width_R,
            left=left_R,
            height=0.62,
            color=PALETTE[i % len(PALETTE)],
            hatch=hatch,
            edgecolor=MUTED if hatch else "none",
            linewidth=0,
            label=name,
        )
        left_R += width_R
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8, handlelength=1, columnspacing=1
    )
