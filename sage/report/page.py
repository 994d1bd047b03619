"""The report as one HTML page that needs nothing besides itself: no script, no font, no network."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sage.output.units import printable, size
from sage.report.groups import Group
from sage.report.plots import MAX_GROUPS, Looks, Plot, looks_of, plots
from sage.report.runs import Run
from sage.report.tables import NOTES, WORDS, Table, headline, single_runs, tables

LONG = 60
"""A table of more lines scrolls in a window of its own."""

MAX_RUNS = 200
"""Of more single runs, so many are listed; report.csv has all."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1b1d21; --muted: #5d636d; --line: #dfe2e7; --band: #f5f6f8;
  --colour-0: #0072b2; --colour-1: #d55e00; --colour-2: #009e73;
  --colour-3: #c0649a; --colour-4: #d48f00; --colour-5: #3ba3dd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --ink: #e7e9ec; --muted: #9ca3ae; --line: #33373e; --band: #1d2024;
    --colour-0: #3d97d6; --colour-1: #f0803c; --colour-2: #2cc295;
    --colour-3: #dd93bd; --colour-4: #f0b545; --colour-5: #8fd0f7;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 78rem; padding: 3rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
}
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -0.02em; }
h2 { margin: 3.5rem 0 0; padding-top: 1.5rem; border-top: 2px solid var(--ink); font-size: 1.4rem; }
h3 { margin: 2rem 0 0.5rem; font-size: 1rem; }
p { margin: 0.4rem 0; max-width: 46rem; }
.quiet, footer, figcaption { color: var(--muted); }
.tables { display: flex; flex-wrap: wrap; gap: 0 4rem; }
.tables > * { max-width: 100%; }
.tables p { font-size: 0.875rem; }
.wide { overflow: auto; }
.long { max-height: 42rem; }
.wide:focus-visible { outline: 2px solid var(--colour-0); outline-offset: 3px; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.8rem; text-align: right; white-space: nowrap; }
thead th {
  position: sticky; top: 0; z-index: 1; background: var(--paper); box-shadow: inset 0 -1px var(--ink);
  color: var(--muted); font-weight: 500;
}
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody tr:hover > * { background: var(--band); }
th:first-child, .text { text-align: left; }
td.text { min-width: 7rem; max-width: 30rem; white-space: normal; overflow-wrap: anywhere; }
th:first-child { position: sticky; left: 0; min-width: 11rem; max-width: 20rem; padding-left: 0; }
th:first-child { background: var(--paper); white-space: normal; overflow-wrap: anywhere; }
thead th:first-child { z-index: 2; }
tbody th { font-weight: 600; }
.cut { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
th svg, .legend svg { width: 34px; height: 10px; margin-right: 0.6rem; vertical-align: -0.05em; }
.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 1.2rem; margin: 0; padding: 0; list-style: none; }
.legend { font-size: 0.8rem; color: var(--muted); }
.legend li { max-width: 100%; overflow-wrap: anywhere; }
details { margin-top: 2rem; }
summary { cursor: pointer; font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.figures { gap: 0.6rem 3rem; margin-top: 2.5rem; }
figure { display: grid; grid-template-rows: subgrid; grid-row: span 2; margin: 0 0 2rem; align-items: start; }
figcaption { font-size: 0.875rem; line-height: 1.4; }
figcaption strong { display: block; color: var(--ink); font-size: 1rem; }
figure > div > svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: 0.875rem; }
footer h2 { margin: 1.5rem 0 0; padding: 0; border: 0; font-size: 1rem; color: var(--ink); }
footer p, footer li { max-width: 60rem; }
ul { margin: 0.4rem 0; padding-left: 1.2rem; }
code { font: 0.9em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media print { body { padding: 0; max-width: none; } figure, tr { break-inside: avoid; } }
@media print { .long { max-height: none; } }
"""


def page(groups: Sequence[Group], unreadable: Mapping[Path, str]) -> str:
    """The whole page."""
    runs = [row.run for group in groups for row in group.rows]
    finished = sum(run.is_finished for run in runs)
    title = f"SAGE report: {', '.join(dict.fromkeys(group.workload for group in groups)) or 'no runs'}"
    drawn = set(map(id, sorted(groups, key=lambda group: -len(group.rows))[:MAX_GROUPS]))
    sections = "\n".join(
        _section(group, f"group-{i}", has_figures=id(group) in drawn) for i, group in enumerate(groups)
    )
    left_out = [f"<code>{_escape(folder)}</code>: {_escape(why)}" for folder, why in unreadable.items()]
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
<p class="quiet">{_count(len(runs), "run")}, {finished} finished.</p>
</header>
<main>
{sections}
</main>
<footer>
{_listed("Left out", left_out)}
{_listed("How to read this", map(_escape, NOTES))}
{_listed("Where the numbers come from", _origins(runs))}
</footer>
</body>
</html>
"""
    return text.encode("utf-8", "backslashreplace").decode()


def _section(group: Group, prefix: str, *, has_figures: bool) -> str:
    looks = looks_of(group)
    shown = "\n".join(_table(group, table, looks) for table in tables(group))
    figures = "\n".join(_figure(plot, looks) for plot in plots(group, prefix)) if has_figures else ""
    missing = (
        ""
        if has_figures
        else f'<p class="quiet">No figures: only the {MAX_GROUPS} workloads with the most runs have '
        "them. Run sage report on the folders of this workload alone.</p>"
    )
    return f"""<section>
<h2>{_escape(group.title)}</h2>
<p class="quiet">{_escape(headline(group))}</p>
<div class="tables">
{shown}
</div>
{missing}
<div class="figures">
{figures}
</div>
{_single_runs(group)}
</section>"""


def _single_runs(group: Group) -> str:
    table = single_runs(group)
    if not table.lines:
        return ""
    left = len(table.lines) - MAX_RUNS
    note = f'<p class="quiet">The first {MAX_RUNS}; report.csv has {left} more.</p>' if left > 0 else ""
    return f"""<details>
<summary>{_count(len(table.lines), "single run")}</summary>
{note}
{_grid(group, table, {}, MAX_RUNS)}
</details>"""


def _table(group: Group, table: Table, looks: Looks) -> str:
    note = f'<p class="quiet">{_escape(table.note)}</p>\n' if table.note else ""
    return f"""<div>
<h3>{_escape(table.title)}</h3>
{note}{_grid(group, table, looks)}
</div>"""


def _grid(group: Group, table: Table, looks: Looks, most: int | None = None) -> str:
    """A table whose row headings bear the lines that the curves are drawn with."""
    classes = [' class="text"' if name in WORDS else "" for name in table.heading]
    top = "".join(
        f'<th scope="col"{kind}>{_escape(name)}</th>'
        for name, kind in zip(table.heading, classes, strict=True)
    )
    rows = []
    for (label, *cells), hint, series in zip(
        table.lines[:most], table.hints[:most], table.series[:most], strict=True
    ):
        look = looks[series].svg if series in looks else ""
        name = look + _escape(label)
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
    return f"<td{kind}>{_escape(text)}</td>"


def _figure(plot: Plot, looks: Looks) -> str:
    items = "".join(f"<li>{looks[label].svg}{_escape(label)}</li>" for label in plot.legend)
    return f"""<figure>
<figcaption><strong>{_escape(plot.title)}</strong> {_escape(plot.caption)}</figcaption>
<div>
{plot.svg}
{f'<ul class="legend">{items}</ul>' if items else ""}
</div>
</figure>"""


def _origins(runs: Iterable[Run]) -> list[str]:
    """The machines and versions in the runs' manifests, each once, and a warning where there are several."""
    counts: dict[str, int] = {}
    for run in runs:
        origin = _origin(run)
        counts[origin] = counts.get(origin, 0) + 1
    lines = [f"{_count(count, 'run')}: {_escape(origin)}" for origin, count in counts.items()]
    if len(lines) > 1:
        lines.append(
            "Not all runs have the same machine and versions: compare times only within one line above."
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
    return printable(f"{machine['hostname']} ({hardware}); {named}; {commit}")


def _listed(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f"<h2>{title}</h2><ul>{items}</ul>" if items else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _escape(text: object) -> str:
    return html.escape(str(text))
