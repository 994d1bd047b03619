"""The results of `sage bench distribution` as tables of text and as CSV."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sage import storage
from sage.bench.distribution.families import FAMILIES, Fitted
from sage.bench.distribution.measure import SHARES, WHOLE, WITH, WITHOUT, Row
from sage.bench.distribution.words import findings
from sage.output.units import MISSING, percent
from sage.report.table import Table

EITHER = {WITHOUT: "without", WITH: "with"}
UNDECIDED = "undecided"
"""The closest family where the sampling error is too large to tell them apart."""
FIELDS = (
    *("trace", "step", "memory", "layer", "elements", "used", "zeros", "positive"),
    *(f"energy_{share:g}" for share in SHARES),
    *("family", "estimator", "location", "scale", "shape", "ks", "ks_error", "closest"),
    *(f"selected_over_target_{share:g}" for share in SHARES),
)
"""The CSV's columns."""


def by_trace(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each trace, by its name."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.trace, []).append(row)
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """The tables of one trace: KS distances, parameters and thresholds by step, and KS distances by layer."""
    whole = [row for row in rows if row.layer == WHOLE]
    made = [distances(whole), _parameters(whole), _thresholds(whole)]
    last = max(row.step for row in rows)
    layers = [row for row in rows if row.layer != WHOLE and row.step == last]
    return [*made, _by_layer(layers, last)] if layers else made


def distances(whole: Sequence[Row]) -> Table:
    """KS distances of the whole gradient by step."""
    lines = [
        [
            str(row.step),
            EITHER[row.memory],
            f"{row.used:,}",
            percent(row.zeros),
            *(_ks(row, family) for family in FAMILIES),
            _error(row),
            _closest(row),
        ]
        for row in whole
    ]
    heading = ["step", "error feedback", "elements", "zeros", *FAMILIES, "sampling error", "closest"]
    note = (
        "The largest difference between the distribution function of |g| and the fit's. The sampling error "
        "is the 95 % band of independent elements. Closest: of the families within the sampling error of the "
        "smallest distance, the one with the fewest parameters."
    )
    return _table("KS distance by step", note, heading, lines)


def _parameters(whole: Sequence[Row]) -> Table:
    names: dict[str, tuple[str, Callable[[Fitted], float]]] = {
        "normal": ("μ/σ", lambda fitted: fitted.location / fitted.scale),
        "Laplace": ("median/scale", lambda fitted: fitted.location / fitted.scale),
        "double exponential": ("scale", lambda fitted: fitted.scale),
        "double gamma": ("α", lambda fitted: fitted.shape),
        "double generalised Pareto": ("c", lambda fitted: fitted.shape),
    }
    lines = []
    for row in whole:
        shown = (
            f"{of(row.fits[family].fitted):.3g}" if family in row.fits else MISSING
            for family, (_, of) in names.items()
        )
        energy = (percent(share) for share in row.energy)
        lines.append([str(row.step), EITHER[row.memory], percent(row.positive), *energy, *shown])
    heading = [
        *("step", "error feedback", "positive"),
        *(f"norm² in the largest {percent(share)}" for share in SHARES),
        *(f"{family}: {what}" for family, (what, _) in names.items()),
    ]
    note = (
        "α = 1 or c = 0 is the double exponential. c > 0 is a heavier tail, with a finite variance below "
        "c = ½. SIDCo's κ is −c."
    )
    return _table("Parameters by step", note, heading, lines)


def _thresholds(whole: Sequence[Row]) -> Table:
    lines = [
        [
            str(row.step),
            EITHER[row.memory],
            *(
                " / ".join(f"{ratio:.2f}" for ratio in row.fits[family].selected)
                if family in row.fits
                else MISSING
                for family in FAMILIES
            ),
            " / ".join(f"{_binomial(row, share):.2f}" for share in SHARES),
        ]
        for row in whole
    ]
    shares = " / ".join(percent(share) for share in SHARES)
    note = (
        f"Elements above the fit's quantile over the target, for targets of {shares}: 1 is exact. This is "
        "SIDCo's threshold of one stage. Sampling error: two standard deviations of the count of independent "
        "elements, over the target."
    )
    heading = ["step", "error feedback", *FAMILIES, "sampling error"]
    return _table("Selected over target of a fitted threshold", note, heading, lines)


def _by_layer(layers: Sequence[Row], step: int) -> Table:
    pairs: dict[str, dict[str, Row]] = {}
    for row in layers:
        pairs.setdefault(row.layer, {})[row.memory] = row
    lines = []
    for layer, pair in pairs.items():
        plain, fed = pair[WITHOUT], pair[WITH]
        cells = (f"{_ks(plain, family)} / {_ks(fed, family)}" for family in FAMILIES)
        own = [layer, f"{plain.used:,}", percent(plain.zeros)]
        lines.append([*own, *cells, _error(plain), _closest(plain), _closest(fed)])
    note = (
        "KS distances without error feedback / with it. Elements, zeros and sampling error are those without "
        "it."
    )
    heading = ["layer", "elements", "zeros", *FAMILIES, "sampling error", "closest without", "closest with"]
    return _table(f"KS distance by layer, step {step}", note, heading, lines)


def markdown(rows: Sequence[Row], about: Mapping[str, object]) -> str:
    """The findings and tables of every trace, and at the end the settings, machine and versions, by name."""
    lines = []
    for name, own in by_trace(rows).items():
        lines += [f"## {name}", "", *(f"- {line}" for line in findings(own)), ""]
        for table in tables(own):
            rule = ["---", *["---:"] * (len(table.heading) - 1)]
            lines += [f"### {table.title}", "", table.note, ""]
            lines += [f"| {' | '.join(line)} |" for line in ([_cell(c) for c in table.heading], rule)]
            lines += [f"| {' | '.join(map(_cell, line))} |" for line in table.lines] + [""]
    return "\n".join([*lines, "## Origin", "", *(f"- {name}: {value}" for name, value in about.items()), ""])


def write_csv(rows: Sequence[Row], estimator: str, head: Mapping[str, object], path: Path) -> None:
    """Write one line per row and family, after lines of `# name: value` with the provenance."""
    comments = [f"# {name}: {value}" for name, value in head.items()]
    storage.write_csv(path, _values(rows, estimator), FIELDS, head=comments)


def _values(rows: Iterable[Row], estimator: str) -> Iterable[dict[str, Any]]:
    for row in rows:
        own = {name: getattr(row, name) for name in FIELDS[:8]}
        own |= {f"energy_{share:g}": energy for share, energy in zip(SHARES, row.energy, strict=True)}
        own |= {"estimator": estimator, "ks_error": row.error}
        if not row.fits:
            yield _rounded(own)
        for family, each in row.fits.items():
            fitted = each.fitted
            own |= {"family": family, "ks": each.ks, "closest": int(family == row.best)}
            own |= {"location": fitted.location, "scale": fitted.scale, "shape": fitted.shape}
            own |= {
                f"selected_over_target_{share:g}": ratio
                for share, ratio in zip(SHARES, each.selected, strict=True)
            }
            yield _rounded(own)


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with six digits, and nothing for NaN."""
    return {
        name: ("" if math.isnan(value) else f"{value:.6g}") if isinstance(value, float) else value
        for name, value in values.items()
    }


def _ks(row: Row, family: str) -> str:
    return f"{row.fits[family].ks:.3f}" if family in row.fits else MISSING


def _error(row: Row) -> str:
    return f"± {row.error:.3f}" if row.used else MISSING


def _closest(row: Row) -> str:
    return (row.best or UNDECIDED) if row.fits else MISSING


def _binomial(row: Row, share: float) -> float:
    return 2 * math.sqrt((1 - share) / share / row.used) if row.used else math.nan


def _table(title: str, note: str, heading: list[str], lines: list[list[str]]) -> Table:
    none = [""] * len(lines)
    return Table(title=title, note=note, heading=heading, lines=lines, hints=none, series=none)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
