"""The style sheet of a report's page. Light and dark follow the reader's setting."""

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
a { color: var(--colour-0); }
[id] { scroll-margin-top: 1rem; }
nav { margin-top: 1.5rem; padding: 1rem 1.25rem; background: var(--band); font-size: 0.875rem; }
nav h2 { margin: 0 0 0.4rem; padding: 0; border: 0; font-size: 1rem; }
nav > ul { padding: 0; list-style: none; }
nav > ul > li { padding: 0.15rem 0; overflow-wrap: anywhere; }
nav > ul > li > a { font-weight: 600; }
nav ul ul { display: flex; flex-wrap: wrap; gap: 0 1rem; margin: 0; padding: 0; list-style: none; }
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
td.short { white-space: nowrap; }
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
