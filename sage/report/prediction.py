"""The pictures of a prediction: step time against bandwidth, and the map of the fastest methods."""

from io import StringIO
from typing import Any

import matplotlib
import numpy
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sage.output.units import duration, rate
from sage.predict.prediction import Curve, Pictures
from sage.report.axes import scale
from sage.report.svg import NUM_LINE_STYLES, LineStyle, line_styles

GREY, NOTHING = "0.45", "0.9"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sage",
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "0.9",
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "text.parse_math": False,
}

MOST_CURVES = 12
"""At most this many methods are drawn: the dense ones, and those that are fastest somewhere or nearly so."""


def step_time(pictures: Pictures) -> str:
    """Return step time against bandwidth as SVG, with 95 % bands. Dense methods are grey."""
    curves, looks = chosen(pictures.curves), assigned(pictures)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            look: dict[str, Any] = {"color": GREY, "linestyle": "--"}
            if not curve.is_dense:
                look = looks[_method(curve.label)].line | {"markevery": 8}
            elif curve.label.startswith("bf16"):
                look = {"color": "0.2", "linestyle": "-", "linewidth": 2}
            axes.plot(pictures.bits_per_second, curve.seconds, label=curve.label, **look)
            axes.fill_between(
                pictures.bits_per_second, curve.low, curve.high, color=look["color"], alpha=0.15, linewidth=0
            )
        axes.set(xlabel="bandwidth of a node's link", ylabel="step time", title=pictures.title)
        scale(axes, "x", pictures.bits_per_second, lambda value, _: rate(value), num_ticks=6)
        scale(axes, "y", [value for curve in curves for value in curve.seconds], duration)
        figure.legend(loc="outside right upper", frameon=False)
        return _svg(figure)


def assigned(pictures: Pictures) -> dict[str, LineStyle]:
    """Return a style for each method, the same in both pictures; with very many methods, styles repeat."""
    names = [_method(curve.label) for curve in pictures.curves if not curve.is_dense]
    styles = line_styles(min(len(names), NUM_LINE_STYLES))
    return {name: styles[i % NUM_LINE_STYLES] for i, name in enumerate(names)}


def _method(label: str) -> str:
    return label.rpartition(" × ")[0]


def chosen(curves: tuple[Curve, ...]) -> list[Curve]:
    """Return the dense curves, and the others that are fastest, or nearest to it, at some bandwidth."""
    best = numpy.min([curve.seconds for curve in curves], axis=0)
    others = [curve for curve in curves if not curve.is_dense]
    nearest = sorted(others, key=lambda curve: float((numpy.array(curve.seconds) / best).min()))
    drawn = nearest[: MOST_CURVES - (len(curves) - len(others))]
    return [curve for curve in curves if curve.is_dense or curve in drawn]


def win_map(pictures: Pictures) -> str:
    """Return the map of the fastest methods as SVG: bandwidth by ranks, on logarithmic axes."""
    drawn = pictures.map
    looks = assigned(pictures)
    colours = [NOTHING, *(looks[_method(name)].colour for name in drawn.labels)]
    # A colour that another method or mount already has is drawn lighter.
    styles = [
        _on_white(colour, max(0.2, 0.9 - 0.4 * colours[:i].count(colour))) for i, colour in enumerate(colours)
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.pcolormesh(
            _edges(drawn.bits_per_second),
            _edges(drawn.ranks),
            numpy.array(drawn.winners) + 1,
            cmap=ListedColormap(styles),
            vmin=-0.5,
            vmax=len(styles) - 0.5,
            edgecolors="face",  # otherwise viewers show gaps between the cells
            linewidth=0.4,
        )
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="bandwidth of a node's link",
            ylabel="ranks",
            title=f"Fastest method: {pictures.title.rpartition(',')[0]}",
        )
        axes.grid(visible=False)
        scale(axes, "x", drawn.bits_per_second, lambda value, _: rate(value), num_ticks=6)
        scale(axes, "y", [float(num_ranks) for num_ranks in drawn.ranks], lambda value, _: f"{value:g}")
        names = ["nothing pays:\noverlapped bf16", *drawn.labels]
        figure.legend(
            handles=[Patch(color=colour, label=name) for colour, name in zip(styles, names, strict=True)],
            loc="outside right upper",
            frameon=False,
        )
        return _svg(figure)


def _on_white(colour: str, opacity: float) -> tuple[float, float, float]:
    """The opaque colour that a translucent one has on white."""
    red, green, blue = (1 - opacity * (1 - channel) for channel in to_rgb(colour))
    return red, green, blue


def _edges(centres: Any) -> Any:
    """The borders between the centres of cells on a logarithmic axis."""
    logs = numpy.log(numpy.asarray(centres, dtype=numpy.float64))
    if len(logs) == 1:
        return numpy.exp([logs[0] - 0.5, logs[0] + 0.5])
    middle = (logs[1:] + logs[:-1]) / 2
    return numpy.exp(numpy.concatenate([[2 * logs[0] - middle[0]], middle, [2 * logs[-1] - middle[-1]]]))


def _svg(figure: Figure) -> str:
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    return buffer.getvalue()
