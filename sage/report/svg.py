"""Converts matplotlib figures to SVG that uses the colours and the font of the surrounding page."""

import html
import re
from dataclasses import dataclass
from io import StringIO
from typing import Any

from matplotlib.figure import Figure

INK, MUTED, LINE = "#010101", "#020202", "#030303"
"""Placeholders for the page's colours, which follow the reader's light or dark setting."""

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that colour-blind readers can distinguish (Okabe and Ito, 2008). Their yellow is too faint."""

DASHES = ((), (5, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5))
"""Lengths of dashes and gaps, in line widths."""

MARKERS = {
    "o": "M14 5a3 3 0 1 0 6 0a3 3 0 1 0 -6 0Z",
    "s": "M14 2H20V8H14Z",
    "^": "M17 1.5L20.5 8H13.5Z",
    "D": "M17 1L21 5L17 9L13 5Z",
    "v": "M17 8.5L20.5 2H13.5Z",
    "X": "M14 2L20 8M20 2L14 8",
    "P": "M17 1.5V8.5M13.5 5H20.5",
    "*": "M17 1L18.2 4H21L18.8 5.9L19.6 9L17 7.2L14.4 9L15.2 5.9L13 4H15.8Z",
}
"""Matplotlib's markers, and the same shapes as SVG paths for legends."""

NUM_LINE_STYLES = 48
"""Number of distinct line styles: six colours times eight pairs of marker and dash pattern."""

PAGE_COLOURS = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)"} | {
    colour: f"var(--colour-{i})" for i, colour in enumerate(PALETTE)
}

STYLE: dict[Any, Any] = {
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    **{
        f"{axis}tick.{part}": colour
        for axis in "xy"
        for part, colour in (("color", LINE), ("labelcolor", MUTED))
    },
}


@dataclass(frozen=True)
class LineStyle:
    """The line style of a series."""

    colour: str
    dashes: tuple[float, ...] = ()
    marker: str = "o"
    """One of `MARKERS`."""

    @property
    def line(self) -> dict[str, Any]:
        """Arguments for matplotlib's `plot`."""
        return {
            "color": self.colour,
            "linestyle": (0, self.dashes) if self.dashes else "solid",
            "marker": self.marker,
        }

    @property
    def svg(self) -> str:
        """A short line with its marker as SVG, for a legend."""
        colour = PAGE_COLOURS[self.colour]
        dashes = " ".join(f"{2 * length:g}" for length in self.dashes)
        line = f"stroke: {colour}; stroke-width: 2; stroke-dasharray: {dashes or 'none'}"
        marker = f'<path d="{MARKERS[self.marker]}" style="fill: {colour}; stroke: {colour}"/>'
        return f'<svg viewBox="0 0 34 10" aria-hidden="true"><path d="M0 5H34" style="{line}"/>{marker}</svg>'


def line_styles(num: int) -> list[LineStyle]:
    """Return `num` distinct line styles: all colours with one marker and dash pattern, then with the next.

    >>> found = line_styles(NUM_LINE_STYLES)
    >>> len(set(found)) == len(found)
    True
    """
    if num > NUM_LINE_STYLES:
        raise ValueError(f"{num} line styles were requested; at most {NUM_LINE_STYLES} are distinct")
    markers = list(MARKERS)
    return [
        LineStyle(PALETTE[i % 6], DASHES[i // 6 % len(DASHES)], markers[i // 6 % len(markers)])
        for i in range(num)
    ]


def as_svg(figure: Figure, prefix: str, label: str) -> str:
    """Return the figure as an SVG element for a page. `prefix` makes its ids unique; `label` names it."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub("|".join(PAGE_COLOURS), lambda match: PAGE_COLOURS[match[0]], svg)
    # Without a fixed size, the figure takes the width that the page gives it.
    role = f'role="img" aria-label="{html.escape(label)}"'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: role, svg, count=1)
