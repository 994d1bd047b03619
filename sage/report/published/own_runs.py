"""Compares our runs with published tables: each figure as a ratio to its baseline, ours with an interval."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sage.output.units import MISSING
from sage.predict.dimensionless import Groups, groups, num_buckets
from sage.report.baselines import OWN
from sage.report.groups import Group, grouped
from sage.report.published.tables import Ours, PublishedTable, Row, Source
from sage.report.published.text import NUMBERS, columns, times
from sage.report.runs import Run, read_runs
from sage.report.seeds import Ratio, ratio
from sage.report.settings import Setting, Values

FIGURES: Mapping[Ours, Callable[[Values], float | None]] = {
    "final": lambda values: values["final"],
    "best": lambda values: values["best"],
    "seconds": lambda values: values["seconds"],
    "step_seconds": lambda values: 1 / values["steps_per_second"] if values["steps_per_second"] else None,
    "density": lambda values: values["density_had"],
    "payload_bytes": lambda values: values["payload_bytes_per_step"],
    "wire_bytes": lambda values: values["wire_bytes_per_step"],
}
"""Our figures, by the names that a published row gives in `ours`."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One published figure, and the same ratio of one of our settings; without runs the label is empty."""

    row: Row
    place: str = ""
    """Workload and number of ranks of our runs."""
    label: str = ""
    baseline: str = ""
    """The label of our baseline."""
    ours: Ratio | None = None
    num: int = 0
    """Number of our runs that the ratio is computed from, without the baseline's."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison of a source with runs."""

    lines: list[Line]
    scales: list[tuple[str, Groups]]
    """The measured dimensionless groups of our profiled runs, by label."""
    left_out: dict[Path, str]
    """Folders of runs that cannot be read, and why."""


def compare(source: Source, paths: Sequence[Path]) -> Comparison:
    """Compare the runs below the paths with the rows of a source that have a ratio and a figure of ours.

    Raises:
        ValueError: if a path is not a folder, or there are no runs.
    """
    runs, left_out = read_runs(paths)
    return compare_groups(source, grouped(runs), left_out)


def compare_groups(
    source: Source, ours: Sequence[Group], left_out: Mapping[Path, str] | None = None
) -> Comparison:
    """Compare groups of runs, as a report has them, with the rows of a source."""
    workloads = {workload for table in source.tables for workload in table.workloads}
    return Comparison(
        lines=lines_of(source, ours),
        scales=[measured for group in ours if group.workload in workloads for measured in _measured(group)],
        left_out=dict(left_out or {}),
    )


def lines_of(source: Source, ours: Sequence[Group]) -> list[Line]:
    """Return a line for each ratio of a source and each setting of ours that fits it, or one without runs."""
    return [line for table in source.tables for line in _lines(table, ours)]


def text(comparison: Comparison) -> list[str]:
    """The lines of a comparison: ours next to theirs, the measured groups, and what was left out."""
    lines = ["Ours next to theirs: ratios, each to its own baseline"]
    heading = ["table", "method", "metric", "theirs", "ours", "interval", "n", "runs", "baseline"]
    cells = [
        [
            line.row.table,
            line.row.method,
            line.row.metric,
            times(line.row.ratio) + ("" if line.row.status == "verified" else f" ({line.row.status})"),
            times(None if line.ours is None else line.ours.mean),
            interval(line.ours),
            str(line.num or MISSING),
            f"{line.place}: {line.label}" if line.label else "no runs",
            line.baseline or MISSING,
        ]
        for line in comparison.lines
    ]
    lines += columns(heading, cells, right=(*NUMBERS, "n"))
    lines += [f"  {label}: {groups}" for label, groups in comparison.scales]
    return [*lines, *(f"Left out: {folder}: {why}" for folder, why in comparison.left_out.items())]


def as_object(comparison: Comparison) -> dict[str, Any]:
    """The comparison as one object for JSON."""
    return {
        "lines": [asdict(line) for line in comparison.lines],
        "groups": [{"runs": label, **asdict(groups)} for label, groups in comparison.scales],
        "left_out": {str(folder): why for folder, why in comparison.left_out.items()},
    }


def _lines(table: PublishedTable, ours: Iterable[Group]) -> list[Line]:
    bases = {row.key: row for row in table.rows}
    lines = []
    for row in table.rows:
        if row.ratio is None or row.ours is None or row.reducer is None:
            continue
        base = bases[*row.key[:2], row.baseline or ""]
        matches = [
            _line(
                row,
                group,
                setting,
                nearest(
                    setting, [candidate for candidate in group.settings if fits(base, config_of(candidate))]
                ),
            )
            for group in ours
            if group.workload in table.workloads
            for setting in group.settings
            if fits(row, config_of(setting))
        ]
        lines += matches or [Line(row=row)]
    return lines


def _line(row: Row, group: Group, setting: Setting, baseline: Setting | None) -> Line:
    assert row.ours is not None
    figure = FIGURES[row.ours]
    ours = None
    if baseline is not None:
        above, below = (
            [(row.run.config["seed"], figure(row.values)) for row in side.counted]
            for side in (setting, baseline)
        )
        ours = ratio(above, below)
    return Line(
        row=row,
        place=group.title,
        label=setting.label,
        baseline="" if baseline is None else baseline.label,
        ours=ours,
        num=len(setting.counted),
    )


def config_of(setting: Setting) -> Mapping[str, Any]:
    """The configuration of a setting's runs, which differ in the seed alone."""
    return setting.rows[0].run.config


def fits(row: Row, config: Mapping[str, Any]) -> bool:
    """Whether a run with this configuration has the reducer of a row, with its options and settings.

    A profiled run is compared with no row: it is short, and its steps are slower.
    """
    options = config.get("reducer_options", {})
    return (
        config["reducer"] == row.reducer
        and not config.get("profile", False)
        and all(options.get(name) == value for name, value in row.options.items())
        and all(config.get(name) == value for name, value in row.settings.items())
    )


def nearest(setting: Setting, candidates: Sequence[Setting]) -> Setting | None:
    """The candidate that differs from a setting in the fewest settings; None if there is none."""

    def distance(other: Setting) -> int:
        one, two = (
            {name: value for name, value in side.rows[0].run.common.items() if name not in OWN}
            for side in (setting, other)
        )
        return sum(one.get(name) != two.get(name) for name in one.keys() | two.keys())

    return min(
        (candidate for candidate in candidates if candidate is not setting), key=distance, default=None
    )


def _measured(group: Group) -> list[tuple[str, Groups]]:
    """The dimensionless groups of each setting with a profiled run whose links were measured."""
    result = []
    for setting in group.settings:
        measured = next(filter(None, (_groups_of(row.run) for row in setting.counted)), None)
        if measured is not None:
            result.append((f"{group.title}: {setting.label}", measured))
    return result


def _groups_of(run: Run) -> Groups | None:
    """The groups of a run: from its phases, its links and its number of parameters."""
    phases, links, figures = run.steps.phases, run.manifest.get("links"), run.figures
    backward, parameters = phases.get("backward"), figures.parameters
    bits = links.get("bits_per_second") if isinstance(links, dict) else None
    alpha = links.get("alpha_seconds") if isinstance(links, dict) else None
    if not backward or not parameters or not isinstance(bits, int | float) or not bits > 0:
        return None
    return groups(
        world_size=run.config["world_size"],
        dense_bytes=2 * parameters,
        bits_per_second=bits,
        backward_seconds=backward,
        encode_decode_seconds=(phases.get("select", 0) + phases.get("scatter", 0)) or None,
        received_bytes=figures.wire_received_per_step or None,
        latency_seconds=alpha if isinstance(alpha, float) and alpha > 0 else None,
        num_buckets=num_buckets(4 * parameters),
    )


def interval(ours: Ratio | None) -> str:
    """Format the interval of a ratio, or why there is none."""
    if ours is None:
        return MISSING
    if ours.interval is None:
        return f"none: {ours.how}"
    low, high = ours.interval
    return f"{times(low)} to {times(high)}, {ours.how}"
