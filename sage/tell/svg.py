"""Matplotlib's figures as SVG that takes its colours and its font from the page around it."""

import html
import re
from dataclasses import dataclass
from io import StringIO
from typing import Any

from matplotlib.figure import Figure

INK, MUTED, LINE = "#010101", "#020202", "#030303"
"""Stand for the page's own colours, which follow the reader's light or dark setting."""

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito (2008): colours that colour-blind readers tell apart. Their yellow is too faint on white."""

DASHES = ((), (5, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5))
"""Dashes and gaps, in line widths."""

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
    "lines.markersize": 4,
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
class Look:
    """How the runs of a series are drawn."""

    colour: str
    dashes: tuple[float, ...] = ()

    @property
    def line(self) -> dict[str, Any]:
        """The look, as matplotlib's plot takes it."""
        return {"color": self.colour, "linestyle": (0, self.dashes) if self.dashes else "solid"}

    @property
    def svg(self) -> str:
        """The look, as a short line for a legend."""
        dashes = " ".join(f"{2 * length:g}" for length in self.dashes)
        style = f"stroke: {PAGE_COLOURS[self.colour]}; stroke-width: 2; stroke-dasharray: {dashes or 'none'}"
        return f'<svg viewBox="0 0 26 8" aria-hidden="true"><path d="M0 4H26" style="{style}"/></svg>'


def as_svg(figure: Figure, prefix: str, label: str) -> str:
    """The figure as an element to stand in a page."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub("|".join(PAGE_COLOURS), lambda match: PAGE_COLOURS[match[0]], svg)
    # Without a size of its own it is as wide as the page lets it be.
    role = f'role="img" aria-label="{html.escape(label)}"'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: role, svg, count=1)
