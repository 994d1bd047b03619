"""Reads the files of published figures, jobs/published/*.toml. A file is one source:

    title = "..."                     # where; authors, year, url, repository, commit, note
    [tables.cifar10]                  # a table: its title, its setting, and what its rows have in common
    title = "ResNet-18 on CIFAR-10"
    metric = "accuracy"
    status = "verified"
    [[row]]                           # a figure; the keys are those of `Row`
    table = "cifar10"
    method = "topk"
    reducer = "topk"
    options = { density = 0.001 }
    value = 0.933
    baseline = "exact"
    [[scale]]                         # what the dimensionless groups of a set-up follow from: `Scale`

A table's `metric`, `unit`, `source`, `status` and `ours` apply to its rows that do not have them. Its
`baseline` is the method of one of its rows, and applies to the other rows of each metric that this method
has. An unknown key is an error, so that no figure is lost by a slip.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from sage import registry, storage
from sage.config import annotations
from sage.report.published.tables import PublishedTable, Row, Scale, Source, with_ratios
from sage.validate import coerce, known, shown

FOLDER = Path(__file__).parents[2] / "jobs" / "published"

DEFAULTS = ("metric", "unit", "source", "status", "ours")
"""Keys of a table that apply to its rows."""

Table = dict[str, Any]
Made = TypeVar("Made", Row, Scale, PublishedTable, Source)
Result = TypeVar("Result")


def sources() -> dict[str, Path]:
    """Return the files of the sources that come with SAGE, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def find(name: str) -> Source:
    """Read the source of this name, or a TOML file.

    Raises:
        ValueError: if there is no such source, or its file is not valid.
    """
    if name.endswith(".toml"):
        return read(Path(name))
    files = sources()
    return read(files[known("published source", name, files)])


def read(path: Path) -> Source:
    """Read one source.

    Raises:
        ValueError: if the file is missing or not valid; the message names the file and the table or row.
    """
    file = path.name
    try:
        content = storage.read_toml(path, "a source of published figures")
    except FileNotFoundError as cause:
        raise ValueError(f"there is no file {path}; `sage published` lists the sources") from cause
    given, rows_given, scales_given = (
        _part(content, name, empty, file) for name, empty in (("tables", {}), ("row", []), ("scale", []))
    )
    heads = {name: _keys(head, f"{file}, table {name}") for name, head in given.items()}
    common = {name: {key: head.pop(key) for key in DEFAULTS if key in head} for name, head in heads.items()}
    baselines = {
        name: _named(f"{file}, table {name}", coerce, "baseline", head.pop("baseline"), str)
        for name, head in heads.items()
        if "baseline" in head
    }
    tables = {name: _head(name, head, f"{file}, table {name}") for name, head in heads.items()}
    rows = [_row(table, common, f"{file}, row {number}") for number, table in enumerate(rows_given, 1)]
    scales = [
        _scale(table, tables, f"{file}, scale {number}") for number, table in enumerate(scales_given, 1)
    ]
    rows = _with_baselines(rows, baselines, file)
    _check_baselines(rows, file)
    source = _made(Source, {**content, "name": path.stem}, file, without=("tables",))
    if not rows and not source.note:
        raise ValueError(f"{file} has no row; a source without figures needs a note that says why")
    ready = with_ratios(rows)
    complete = [
        replace(
            table,
            rows=tuple(row for row in ready if row.table == name),
            scales=tuple(scale for scale in scales if scale.table == name),
        )
        for name, table in tables.items()
    ]
    return replace(source, tables=tuple(complete))


def _head(name: str, head: Table, where: str) -> PublishedTable:
    table = _made(PublishedTable, {**head, "name": name}, where, without=("rows", "scales"))
    for workload in table.workloads:
        _named(where, known, "workload", workload, registry.workloads())
    return table


def _row(given: Any, common: Mapping[str, Table], where: str) -> Row:
    own = _keys(given, where)
    where += f" ({own.get('table')}, {own.get('method')})"
    table = _named(where, known, "table", str(own.get("table")), common)
    row = _made(Row, {**common[table], **own}, where, without=("ratio",))
    if row.reducer is not None:
        _named(where, registry.check_options, "reducers", row.reducer, row.options, from_source=True)
    elif row.options or row.settings:
        raise ValueError(f"{where}: options or settings without a reducer; name the reducer that has them")
    for name, value in row.settings.items():
        _named(where, known, "setting", name, annotations())
        _named(where, coerce, name, value, annotations()[name])
    if row.high is not None and row.high <= row.value:
        raise ValueError(f"{where}: high is {row.high:g}; allowed is a number above value, {row.value:g}")
    return row


def _scale(given: Any, tables: Mapping[str, PublishedTable], where: str) -> Scale:
    scale = _made(Scale, _keys(given, where), where)
    _named(where, known, "table", scale.table, tables)
    return scale


def _with_baselines(rows: Sequence[Row], baselines: Mapping[str, str], file: str) -> list[Row]:
    """Give the rows without a baseline that of their table, for the metrics that it has."""
    for table, method in baselines.items():
        methods = {row.method for row in rows if row.table == table}
        if method not in methods:
            raise ValueError(
                f"{file}, table {table}: the baseline is {shown(method)}; allowed are the methods of its "
                f"rows: {', '.join(sorted(methods)) or 'there are none'}"
            )
    have = {row.key for row in rows}

    def baseline_of(row: Row) -> str | None:
        method = baselines.get(row.table)
        is_there = method is not None and (row.table, row.metric, method) in have
        return method if is_there and method != row.method else None

    return [replace(row, baseline=row.baseline or baseline_of(row)) for row in rows]


def _check_baselines(rows: Sequence[Row], file: str) -> None:
    """Refuse a row that occurs twice, and one with no such baseline or with one of a weaker status."""
    by_key: dict[tuple[str, str, str], Row] = {}
    places = {
        id(row): f"{file}, row {number} ({row.table}, {row.method})" for number, row in enumerate(rows, 1)
    }
    for row in rows:
        if by_key.setdefault(row.key, row) is not row:
            raise ValueError(
                f"{places[id(row)]}: this method has another row with the metric {row.metric!r}; remove one "
                "of them, or give them different names"
            )
    for row in (row for row in rows if row.baseline is not None):
        base = by_key.get((row.table, row.metric, row.baseline or ""))
        if base is None or base is row:
            others = [other.method for other in rows if other.key[:2] == row.key[:2] and other is not row]
            raise ValueError(
                f"{places[id(row)]}: the baseline is {row.baseline!r}; allowed are the other methods of this "
                f"table and metric: {', '.join(others) or 'there are none'}"
            )
        if row.status == "verified" != base.status:
            raise ValueError(
                f"{places[id(row)]}: the status is verified, but that of its baseline is {base.status}; give "
                "this row the weaker of the two"
            )


def _made(kind: type[Made], given: Table, where: str, without: Sequence[str] = ()) -> Made:
    """Make an object from the keys of a table, each checked against its annotation."""
    hints = get_type_hints(kind, include_extras=True)
    valid = {name: hint for name, hint in hints.items() if name not in without}
    needed = [
        item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING
    ]
    for name in given:
        _named(where, known, "key", name, valid)
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"{where} needs the key {missing[0]!r}")
    return kind(**{name: _named(where, coerce, name, value, valid[name]) for name, value in given.items()})


def _named(where: str, check: Callable[..., Result], *args: Any, **options: Any) -> Result:
    """Call a check; its error names the place in the file."""
    try:
        return check(*args, **options)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _keys(given: Any, where: str) -> Table:
    if not isinstance(given, dict):
        raise ValueError(f"{where} is {shown(given)}; allowed is a table of keys")
    return dict(given)


def _part(content: Table, name: str, empty: Any, file: str) -> Any:
    value = content.pop(name, empty)
    if type(value) is not type(empty):
        form = "[tables.NAME]" if name == "tables" else f"[[{name}]]"
        raise ValueError(f"{file}: {name} is {shown(value)}; allowed are tables written as {form}")
    return value
