"""The report as one self-contained HTML page: no script, no font, no network access."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sage.output.units import printable, size
from sage.report.groups import Group
from sage.report.plots import MAX_GROUPS, LineStyles, Plot, assign_line_styles, plots
from sage.report.runs import Run
from sage.report.style import STYLE
from sage.report.table import Table
from sage.report.tables import NOTES, WORDS, headline, single_runs, tables
from sage.report.time_to_target.verdicts import first_line

LONG = 60
"""A table with more lines scrolls within its own area."""

SHORT = 16
"""A cell of text of at most this many characters is not broken into lines."""

MAX_RUNS = 200
"""At most this many single runs are listed; report.csv has all."""


@dataclass(frozen=True)
class Section:
    """The part of the page about one group."""

    group: Group
    name: str
    """The id of its heading, and the prefix of all ids within it."""
    tables: Sequence[Table]
    plots: Sequence[Plot] | None
    """The figures; None if the page has too many groups to draw all."""

    @cached_property
    def single(self) -> Table:
        """The table of single runs."""
        return single_runs(self.group)

    def id_of(self, part: Table | Plot) -> str:
        """The id of the heading of a table or figure."""
        return f"{self.name}-{'figure-' if isinstance(part, Plot) else ''}{_slug(part.title)}"

    def headings(self) -> dict[str, Sequence[Table | Plot]]:
        """Return the entries of the table of contents, by kind."""
        single = [self.single] if self.single.lines else []
        return {"Tables": [*self.tables, *single], "Figures": self.plots or ()}


def page(groups: Sequence[Group], unreadable: Mapping[Path, str]) -> str:
    """Return the whole page."""
    runs = [row.run for group in groups for row in group.rows]
    finished = sum(run.is_finished for run in runs)
    title = f"SAGE report: {', '.join(dict.fromkeys(group.workload for group in groups)) or 'no runs'}"
    drawn = set(map(id, sorted(groups, key=lambda group: -len(group.rows))[:MAX_GROUPS]))
    sections = [
        Section(
            group,
            f"group-{i}",
            tables(group),
            plots(group, f"group-{i}") if id(group) in drawn else None,
        )
        for i, group in enumerate(groups)
    ]
    left_out = [f"<code>{_escape(folder)}</code>: {_escape(why)}" for folder, why in unreadable.items()]
    footer = {
        "Runs left out": left_out,
        "How to read this report": list(map(_escape, NOTES)),
        "Machines and versions": _origins(runs),
    }
    body = "\n".join(map(_section, sections))
    verdict = first_line(groups)
    end = "\n".join(_listed(heading, lines) for heading, lines in footer.items())
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{_escape(title)}</h1>
{f"<p><strong>{_escape(verdict)}</strong></p>" if verdict else ""}
<p class="quiet">{_count(len(runs), "run")}, {finished} finished.</p>
</header>
{_contents(sections, [heading for heading, lines in footer.items() if lines])}
<main>
{body}
</main>
<footer>
{end}
</footer>
</body>
</html>
"""
    return text.encode("utf-8", "backslashreplace").decode()


def _contents(sections: Sequence[Section], notes: Iterable[str]) -> str:
    """A table of contents: each group with its tables and figures, then the notes at the end of the page."""
    items = []
    for section in sections:
        lists = []
        for kind, parts in section.headings().items():
            links = "".join(f"<li>{_link(section.id_of(part), part.title)}</li>" for part in parts)
            lists += [f'<ul><li class="quiet">{kind}</li>{links}</ul>'] if parts else []
        items.append(f"<li>{_link(section.name, section.group.title)}{''.join(lists)}</li>")
    items += [f"<li>{_link(_slug(title), title)}</li>" for title in notes]
    return f"""<nav aria-labelledby="contents">
<h2 id="contents">Contents</h2>
<ul>
{chr(10).join(items)}
</ul>
</nav>"""


def _link(name: str, title: str) -> str:
    return f'<a href="#{name}">{_escape(title)}</a>'


def _section(section: Section) -> str:
    group = section.group
    styles = assign_line_styles(group)
    shown = "\n".join(_table(section, table, styles) for table in section.tables)
    figures = "\n".join(_figure(section, plot, styles) for plot in section.plots or ())
    missing = (
        ""
        if section.plots is not None
        else f'<p class="quiet">No figures: only the {MAX_GROUPS} workloads with the most runs have figures. '
        "To draw them, run sage report on the folders of this workload only.</p>"
    )
    return f"""<section>
<h2 id="{section.name}">{_escape(group.title)}</h2>
<p class="quiet">{_escape(headline(group))}</p>
<div class="tables">
{shown}
</div>
{missing}
<div class="figures">
{figures}
</div>
{_single_runs(section)}
</section>"""


def _single_runs(section: Section) -> str:
    table = section.single
    if not table.lines:
        return ""
    left = len(table.lines) - MAX_RUNS
    note = f'<p class="quiet">The first {MAX_RUNS}; report.csv has {left} more.</p>' if left > 0 else ""
    return f"""<details>
<summary id="{section.id_of(table)}">{_count(len(table.lines), "single run")}</summary>
{note}
{_grid(section.group, table, {}, MAX_RUNS)}
</details>"""


def _table(section: Section, table: Table, styles: LineStyles) -> str:
    note = f'<p class="quiet">{_escape(table.note)}</p>\n' if table.note else ""
    return f"""<div>
<h3 id="{section.id_of(table)}">{_escape(table.title)}</h3>
{note}{_grid(section.group, table, styles)}
</div>"""


def _grid(group: Group, table: Table, styles: LineStyles, most: int | None = None) -> str:
    """An HTML table whose row headings show the line styles of the figures."""
    classes = [' class="text"' if name in WORDS else "" for name in table.heading]
    top = "".join(
        f'<th scope="col"{kind}>{_escape(name)}</th>'
        for name, kind in zip(table.heading, classes, strict=True)
    )
    rows = []
    for (label, *cells), hint, series in zip(
        table.lines[:most], table.hints[:most], table.series[:most], strict=True
    ):
        line = styles[series].svg if series in styles else ""
        name = line + _escape(label)
        if len(label) > 60:
            name = f'<span class="cut"><span>{name}</span></span>'
        first = f'<th scope="row" title="{_escape(hint)}">{name}</th>'
        rest = "".join(_cell(cell, kind) for cell, kind in zip(cells, classes[1:], strict=True))
        rows.append(f"<tr>{first}{rest}</tr>")
    name = _escape(f"{table.title}: {group.title}")
    kind = "wide long" if len(rows) > LONG else "wide"
    return f"""<div class="{kind}" role="region" tabindex="0" aria-label="{name}">
<table>
<thead><tr>{top}</tr></thead>
<tbody>
{chr(10).join(rows)}
</tbody>
</table>
</div>"""


def _cell(text: str, kind: str) -> str:
    if kind and len(text) > 60:
        return f'<td{kind}><span class="cut" title="{_escape(text)}">{_escape(text)}</span></td>'
    if kind and len(text) <= SHORT:
        return f'<td class="text short">{_escape(text)}</td>'
    return f"<td{kind}>{_escape(text)}</td>"


def _figure(section: Section, plot: Plot, styles: LineStyles) -> str:
    items = "".join(f"<li>{styles[label].svg}{_escape(label)}</li>" for label in plot.legend)
    return f"""<figure>
<figcaption>
<strong id="{section.id_of(plot)}">{_escape(plot.title)}</strong>
{_escape(plot.caption)}
</figcaption>
<div>
{plot.svg}
{f'<ul class="legend">{items}</ul>' if items else ""}
</div>
</figure>"""


def _origins(runs: Iterable[Run]) -> list[str]:
    """The distinct machines and versions in the runs' manifests, and a warning if there are several."""
    counts: dict[str, int] = {}
    for run in runs:
        origin = _origin(run)
        counts[origin] = counts.get(origin, 0) + 1
    lines = [f"{_count(count, 'run')}: {_escape(origin)}" for origin, count in counts.items()]
    if len(lines) > 1:
        lines.append(
            "Machines or versions differ between runs: compare times only within one of the lines above."
        )
    return lines


def _origin(run: Run) -> str:
    machine, versions, git = (run.manifest[part] for part in ("machine", "versions", "git"))
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    commit = (
        f"commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}"
        if git["commit"]
        else "no commit"
    )
    memory = size(machine["memory_bytes"])
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {memory} memory, {gpus}, {machine['os']}"
    said = "".join(f"; {kind}: {text}" for kind, text in run.manifest.get("provenance", {}).items())
    return printable(f"{machine['hostname']} ({hardware}); {named}; {commit}{said}")


def _listed(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f'<h2 id="{_slug(title)}">{title}</h2><ul>{items}</ul>' if items else ""


def _slug(title: str) -> str:
    """The title as an id."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _escape(text: object) -> str:
    return html.escape(str(text))
