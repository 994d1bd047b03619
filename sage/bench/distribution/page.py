"""The results of `sage bench distribution` as one self-contained HTML page: no script, no network access."""

import html
from collections.abc import Mapping, Sequence

from sage.bench.distribution.measure import Row
from sage.bench.distribution.plots import STYLES, Plot, plots
from sage.bench.distribution.tables import by_trace, tables
from sage.bench.distribution.words import findings
from sage.report.style import STYLE
from sage.report.table import Table

TEXT = ("closest", "closest without", "closest with")
"""Columns of text, which are aligned to the left."""

NOTES = (
    "Exact zeros are left out of the fits, because a continuous distribution has none; the tables have their "
    "share.",
    "Of more elements than --sample, the fits use a random sample. Sampling errors are those of independent "
    "elements; the elements of a gradient are not independent.",
    "With error feedback, the signal is g + r: the residual r is what the reducer has not sent of the "
    "trace's earlier gradients, from none at the trace's first step.",
    "The gradients are those of rank 0.",
    "Normal: mean and standard deviation. Laplace: median, and mean distance from it. Double exponential, "
    "gamma and generalised Pareto (SIDCo: Abdelmoniem et al., MLSys 2021): symmetric about zero, with |g| of "
    "that family.",
)


def page(rows: Sequence[Row], about: Mapping[str, object]) -> str:
    """Return the whole page.

    Args:
        rows: the results of all traces.
        about: the settings, machine and versions, by name.
    """
    traces = by_trace(rows)
    title = f"Gradient distributions: {', '.join(traces)}"
    sections = [_section(name, own, f"trace-{i}") for i, (name, own) in enumerate(traces.items())]
    links = "".join(f'<li><a href="#trace-{i}">{html.escape(name)}</a></li>' for i, name in enumerate(traces))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in NOTES)
    facts = "".join(f"<li>{html.escape(f'{name}: {value}')}</li>" for name, value in about.items())
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
</header>
<nav aria-labelledby="contents">
<h2 id="contents">Contents</h2>
<ul>{links}<li><a href="#notes">How to read this page</a></li><li><a href="#about">Origin</a></li></ul>
</nav>
<main>
{"".join(sections)}
</main>
<footer>
<h2 id="notes">How to read this page</h2><ul>{notes}</ul>
<h2 id="about">Origin</h2><ul>{facts}</ul>
</footer>
</body>
</html>
"""
    return text.encode("utf-8", "backslashreplace").decode()


def _section(name: str, rows: Sequence[Row], prefix: str) -> str:
    words = "".join(f"<li>{html.escape(line)}</li>" for line in findings(rows))
    shown = "\n".join(_table(table, name) for table in tables(rows))
    figures = "\n".join(map(_figure, plots(rows, prefix)))
    return f"""<section>
<h2 id="{prefix}">{html.escape(name)}</h2>
<ul>{words}</ul>
<div class="figures">
{figures}
</div>
<div class="tables">
{shown}
</div>
</section>
"""


def _table(table: Table, trace: str) -> str:
    classes = [' class="text"' if name in TEXT else "" for name in table.heading]
    top = "".join(
        f'<th scope="col"{kind}>{html.escape(name)}</th>'
        for name, kind in zip(table.heading, classes, strict=True)
    )
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        + "".join(
            f"<td{kind}>{html.escape(cell)}</td>" for cell, kind in zip(cells, classes[1:], strict=True)
        )
        + "</tr>"
        for first, *cells in table.lines
    )
    return f"""<div>
<h3>{html.escape(table.title)}</h3>
<p class="quiet">{html.escape(table.note)}</p>
<div class="wide" role="region" tabindex="0" aria-label="{html.escape(f"{table.title}: {trace}")}">
<table>
<thead><tr>{top}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
</div>"""


def _figure(plot: Plot) -> str:
    items = "".join(f"<li>{style.svg}{html.escape(family)}</li>" for family, style in STYLES.items())
    return f"""<figure>
<figcaption>
<strong>{html.escape(plot.title)}</strong>
{html.escape(plot.caption)}
</figcaption>
<div>
{plot.svg}
<ul class="legend">{items}</ul>
</div>
</figure>"""
