"""What a report compares settings by: the columns of its tables, and the notes below them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from sage.output.units import MISSING, duration, number, percent, rate, size, spaced, times
from sage.report.groups import Group, Row, Setting
from sage.report.run_summary import TOLERANCE
from sage.report.runs import EXACT
from sage.report.seeds import Spread
from sage.report.sharing import load_text

Text = Callable[[float | None], str]

WORDS = ("reducer", "run", "status", "baseline", "reason", "folder")
"""The columns of words, which align to the left."""

OUTCOME, SPEED, TRAFFIC, DENSITY = "Outcome", "Speed", "Traffic of a step", "Density"
UNFINISHED, RUNS = "Not finished", "Single runs"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Lines of text under a heading; every line is as long as the heading."""

    title: str
    note: str
    heading: list[str]
    lines: list[list[str]]
    hints: list[str]
    """For each line, what a page shows when the reader points at it: where the runs are."""
    series: list[str]
    """For each line, the series whose look it bears; "" for none."""


NOTES = (
    "A line is a setting: its runs differ in the seed alone. Figures are mean ± standard deviation over n "
    "runs; where some runs of a setting are finished, of those alone. report.csv has every run.",
    f"Speed-up is the ratio of steps/s to the {EXACT} runs of the same model, data and batch size. Its "
    "interval is Student's t, 95 %: over pairs of the same seed, else over two samples. Fewer than two runs "
    "on a side have no interval, and their ratio may be chance. Above 1× is faster.",
    f"Compression is the wire bytes of {EXACT} over those of the setting; without {EXACT} runs, those of a "
    "ring all-reduce of the N parameters in float32, 4·N·2(W-1)/W bytes each way.",
    "Payload is what a rank hands to its collectives; wire is what these send and receive on its link.",
    f"Within ±{100 * TOLERANCE:.0f} %: the share of steps whose density was that near to what was asked for; "
    f"{MISSING} for reducers that have no target.",
    "Step times are those of the slowest rank; those of an unfinished run are rank 0's own.",
    "Shared: how many of the runs shared a machine with another run of this report while they ran. Load is "
    "the machine's 1-minute average at a run's start and end.",
)


def headline(group: Group) -> str:
    """Which metric the group is judged by, and what its links can do."""
    direction = "higher" if group.better == "max" else "lower"
    return f"The metric is {spaced(group.metric)}: {direction} is better. {links(group)}"


def links(group: Group) -> str:
    """What the probes of the group's runs measured before they trained."""
    probes = [probe for row in group.rows if isinstance(probe := row.run.manifest.get("links"), dict)]
    alphas, bits = (
        sorted(float(probe[name]) for probe in probes if _is_positive(probe.get(name)))
        for name in ("alpha_seconds", "bits_per_second")
    )
    if not alphas or not bits:
        return "Links: not probed."
    return (
        f"Links, probed before each run: latency {_range(alphas, duration)}, bandwidth {_range(bits, rate)}"
        f"{f' (median of {len(probes)} runs; lowest and highest)' if len(probes) > 1 else ''}."
    )


def tables(group: Group) -> list[Table]:
    """The group's tables; those without lines are left out."""
    metric = spaced(group.metric)
    found = [
        _of_settings(group, OUTCOME, "", {
            metric: lambda each: _figure(each, "final"),
            "best": lambda each: _figure(each, "best"),
            "train loss": lambda each: _figure(each, "train_loss"),
            "n": lambda each: str(len(each.counted)),
            "status": lambda each: each.status,
        }),
        _of_settings(group, SPEED, _about_speed(group), {
            "steps/s": lambda each: _figure(each, "steps_per_second"),
            "n": lambda each: str(len(each.counted)),
            "step p50": _mean_of("step_seconds_p50", duration),
            "step p95": _mean_of("step_seconds_p95", duration),
            "speed-up": _speed_up,
            "95 % interval": _interval,
            "baseline": _baseline,
            "time": _mean_of("seconds", duration),
            "shared": lambda each: f"{each.num_sharing} of {len(each.counted)}",
        }),
        _of_settings(group, TRAFFIC, "", {
            "payload": _mean_of("payload_bytes_per_step", size),
            **{kind: _mean_of(f"payload_{kind}_bytes_per_step", size) for kind in group.kinds},
            "wire": _mean_of("wire_bytes_per_step", size),
            "compression": _mean_of("compression", times),
        }),
        _of_settings(group, DENSITY, "", {
            "asked": _mean_of("density_asked", percent),
            "had": _mean_of("density_had", percent),
            f"within ±{100 * TOLERANCE:.0f} %": _mean_of("density_met", percent),
        }),
        unfinished(group),
    ]  # fmt: skip
    return [table for table in found if table.lines]


def unfinished(group: Group) -> Table:
    """The runs without a result, and why they have none."""
    rows = group.unfinished
    return Table(
        title=UNFINISHED,
        note="The reason is what the run left in failure.json, else its last event.",
        heading=["run", "status", "reason"],
        lines=[[row.label, row.run.status, row.run.reason] for row in rows],
        hints=[row.values["folder"] for row in rows],
        series=["" for _ in rows],
    )


def single_runs(group: Group) -> Table:
    """Every run that has figures, by itself."""
    rows = [row for row in group.rows if row.has_figures]

    def line(row: Row) -> list[str]:
        values = row.values
        return [
            row.label,
            number(values["final"]),
            number(values["steps_per_second"]),
            size(values["wire_bytes_per_step"]),
            percent(values["density_had"]),
            load_text(row.run),
            f"with {values['shared_with']}" if values["shared_with"] else MISSING,
            row.run.status,
        ]

    metric = spaced(group.metric)
    return Table(
        title=RUNS,
        note="",
        heading=["run", metric, "steps/s", "wire", "density", "load", "shared", "status"],
        lines=list(map(line, rows)),
        hints=[row.values["folder"] for row in rows],
        series=[row.series for row in rows],
    )


def _of_settings(
    group: Group, title: str, note: str, columns: Mapping[str, Callable[[Setting], str]]
) -> Table:
    return Table(
        title=title,
        note=note,
        heading=["reducer", *columns],
        lines=[[each.label, *(text(each) for text in columns.values())] for each in group.settings],
        hints=[
            "\n".join([each.label, *(row.values["folder"] for row in each.rows[:5])])
            for each in group.settings
        ],
        series=[each.label for each in group.settings],
    )


def _about_speed(group: Group) -> str:
    """What the speed-ups are over, and how much they can be trusted."""
    baselines = {each.baseline.label: each.baseline for each in group.settings if each.baseline is not None}
    if not baselines:
        return f"Without {EXACT} runs of the same work there is no baseline, and no speed-up."
    words = [f"{label} (n = {len(each.counted)})" for label, each in baselines.items()]
    text = f"Baseline: {', '.join(words[:3])}{f' and {len(words) - 3} more' if len(words) > 3 else ''}. "
    text += "± is one standard deviation over the n runs; p50 and p95 are means of the runs'."
    if sum(each.num_sharing for each in group.settings):
        text += " Runs shared their machine with others: their times are worth little."
    return text


def _figure(setting: Setting, name: str) -> str:
    return _spread(setting.spread(name))


def _spread(found: Spread | None) -> str:
    """Mean and standard deviation, the mean with as many digits as the deviation makes sense of."""
    if found is None:
        return MISSING
    if not found.num:
        return "not finite"
    text = number(found.mean)
    if found.sd is not None:
        text += f" ± {number(found.sd, 2)}"
    return text + (f", {found.num_not_finite} not finite" if found.num_not_finite else "")


def _mean_of(name: str, text: Text) -> Callable[[Setting], str]:
    return lambda setting: text(setting.mean(name))


def _speed_up(setting: Setting) -> str:
    if setting.rows[0].values["reducer"] == EXACT:
        return times(1) if setting.mean("steps_per_second") else MISSING
    return MISSING if setting.speed_up is None else times(setting.speed_up.mean)


def _interval(setting: Setting) -> str:
    found = setting.speed_up
    if found is None:
        return MISSING
    if found.interval is None:
        return f"none: {found.how}"
    low, high = found.interval
    return f"{times(low)} to {times(high)}, {found.how}"


def _baseline(setting: Setting) -> str:
    if setting.baseline is None:
        return MISSING
    return f"{setting.baseline.label} (n = {len(setting.baseline.counted)})"


def _range(values: list[float], text: Text) -> str:
    middle = text(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({text(values[0])} to {text(values[-1])})"


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
