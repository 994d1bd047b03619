"""The figures of a report: the list of figures, the settings they show, and the style of each setting."""

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from sage.output.units import spaced
from sage.report import bars, curves
from sage.report.curves import Canvas, Drawing
from sage.report.groups import Group
from sage.report.runs import EXACT
from sage.report.settings import Setting
from sage.report.svg import MUTED, NUM_LINE_STYLES, STYLE, LineStyle, as_svg, line_styles
from sage.report.time_to_target import profile_plot

MAX_GROUPS = 12
"""At most this many workloads, those with the most runs, have figures."""


@dataclass(frozen=True)
class Plot:
    """A drawn figure, its caption and the settings in its legend; () if its axis names them."""

    title: str
    caption: str
    svg: str
    legend: tuple[str, ...]


LineStyles = dict[str, LineStyle]


def chosen(group: Group) -> list[Setting]:
    """The settings to draw: all, or exact and the best ones if there are more than `NUM_LINE_STYLES`."""
    if len(group.settings) <= NUM_LINE_STYLES:
        return group.settings
    exact = [setting for setting in group.settings if setting.rows[0].values["reducer"] == EXACT]
    others = [setting for setting in group.settings if setting.rows[0].values["reducer"] != EXACT]
    sign = -1 if group.better == "max" else 1

    def rank(setting: Setting) -> float:
        final = setting.mean("final")
        return sign * final if final is not None and math.isfinite(final) else math.inf

    chosen_settings = exact[:4] + sorted(others, key=rank)[: NUM_LINE_STYLES - len(exact[:4])]
    drawn = set(chosen_settings)
    return [setting for setting in group.settings if setting in drawn]


def assign_line_styles(group: Group) -> LineStyles:
    """Assign a distinct style to each setting that is drawn; exact is grey if it is a single setting."""
    settings = chosen(group)
    labels = [setting.label for setting in settings]
    exact = [setting.label for setting in settings if setting.rows[0].values["reducer"] == EXACT]
    grey = exact if len(exact) == 1 else []
    others = [label for label in labels if label not in grey]
    return dict.fromkeys(grey, LineStyle(MUTED)) | dict(zip(others, line_styles(len(others)), strict=True))


def plots(group: Group, prefix: str) -> list[Plot]:
    """Draw every figure for which the group has data. `prefix` makes ids unique within a page."""
    drawn = []
    settings, styles = chosen(group), assign_line_styles(group)
    left = len(group.settings) - len(settings)
    for i, (title, draw) in enumerate(FIGURES.items()):
        title = title.format(metric=_capitalised(spaced(group.metric)))
        style: dict[Any, Any] = STYLE | {"svg.hashsalt": prefix}
        with matplotlib.rc_context(style), warnings.catch_warnings():
            # A label may contain characters that matplotlib's font lacks; browsers use their own.
            warnings.filterwarnings("ignore", message="Glyph")
            figure = Figure(figsize=(5.6, 3.1), layout="constrained")
            drawing = draw(Canvas(figure, group, settings, styles))
            if drawing is None:
                continue
            notes = list(drawing.notes)
            if left:
                notes.append(
                    f"{len(settings)} of {len(group.settings)} settings are drawn, the best by "
                    f"{spaced(group.metric)}; the tables list all."
                )
            caption = " ".join([" ".join((inspect.getdoc(draw) or "").split()), *notes])
            has_legend = draw in LEGENDS
            drawn.append(
                Plot(
                    title,
                    caption,
                    as_svg(figure, f"{prefix}-{i}", title),
                    tuple(setting.label for setting in drawing.settings) if has_legend else (),
                )
            )
    return drawn


FIGURES: dict[str, Callable[[Canvas], Drawing | None]] = {
    "Time to target, relative to the reference": profile_plot.time_profile,
    "{metric} by epoch": curves.metric_by_epoch,
    "{metric} by traffic": curves.metric_by_traffic,
    "{metric} against bytes and time": curves.pareto,
    "Training loss": curves.loss_by_step,
    "Density": curves.density_by_step,
    "Payload of a step": bars.payload,
    "Step time": bars.step_time,
    "Phases of a step": bars.phases,
}

LEGENDS = (
    profile_plot.time_profile,
    curves.metric_by_epoch,
    curves.metric_by_traffic,
    curves.pareto,
    curves.loss_by_step,
    curves.density_by_step,
)
"""The figures that need a legend: their settings are distinguished only by their line styles."""


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
