"""The tables of a report: their columns, and the notes that explain them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median

from sage.output.units import MISSING, duration, number, percent, rate, size, spaced, speed, times
from sage.records.loader import LARGE_SHARE
from sage.report.groups import Group
from sage.report.published.report_table import published_table
from sage.report.reference import about_references, references_of
from sage.report.run_summary import TOLERANCE
from sage.report.runs import EXACT
from sage.report.seeds import Spread
from sage.report.settings import Row, Setting
from sage.report.sharing import load_text
from sage.report.table import Table
from sage.report.time_to_target.table import NOTE, target_table

Text = Callable[[float | None], str]

WORDS = (
    "reducer",
    "run",
    "status",
    "verdict",
    "reference",
    "baseline",
    "table",
    "metric",
    "reason",
    "folder",
)
"""Columns of text, aligned to the left."""

OUTCOME, SPEED, REDUCTION = "Outcome", "Speed", "Reduction of a step"
COST = "Error and memory"
TRAFFIC, DENSITY = "Traffic of a step", "Density"
UNFINISHED, RUNS = "Not finished", "Single runs"


NOTES = (
    "Each line is a setting; its runs differ only in the seed. Figures are mean ± standard deviation over n "
    "runs. If any run of a setting is finished, only finished runs count. report.csv lists every run.",
    "Speed-up is the ratio of steps/s to the reference: the fastest bf16 or exact runs with mount ddp that "
    "have the same model, data and batch size, or without mount ddp if there are none; above 1× is faster. "
    f"The speed-up over {EXACT} with mount whole, which does not overlap, is listed next to it. The interval "
    "of a speed-up is Student's t, 95 %: over pairs with the same seed, else over two samples. With "
    "fewer than two runs on a side there is no interval, and the ratio may be due to chance.",
    f"Compression is the wire bytes of {EXACT} divided by those of the setting. Without {EXACT} runs, a ring "
    "all-reduce of the N parameters in float32 takes their place: 4·N·2(W-1)/W bytes in each direction.",
    "Encode, decode and exposed are medians over the steps of rank 0, in a mean over runs. Exposed: the "
    "communication that backward does not hide. Without mount ddp, it is all communication of the reduction.",
    "Algbw is the 4·N bytes of the dense gradient divided by the median time of a whole reduction (encode, "
    "collectives, decode), and busbw is algbw times 2(W-1)/W, as in nccl-tests; only where the reduction "
    "does not overlap with backward. Bits/element: the payload of a step by the N elements.",
    "vNMSE is the squared error of the reduced gradient relative to the exact mean, in the steps of "
    "--vnmse-every; with error feedback it contains what earlier steps did not send. State: the bytes that a "
    "method keeps on a rank between steps. Peak memory: of the process, or of torch on a GPU; largest rank.",
    "Payload is what a rank passes to collectives. Wire is what they send and receive on its link.",
    "Target and achieved are densities: the share of the gradient to send, and the share sent. On-target "
    f"steps: share of steps with an achieved density within ±{100 * TOLERANCE:.0f} % of the target; "
    f"{MISSING} for reducers without a target.",
    NOTE,
    "Step times are those of the slowest rank; for an unfinished run, those of rank 0.",
    "Shared: number of runs that shared a machine with another run of this report. Load: the machine's "
    "1-minute load average at the start and end of a run.",
)


def headline(group: Group) -> str:
    """State the group's metric and the measured speed of its links."""
    direction = "higher" if group.better == "max" else "lower"
    return f"The metric is {spaced(group.metric)}: {direction} is better. {links(group)}"


def links(group: Group) -> str:
    """Summarise the latencies and bandwidths that the group's runs measured before training."""
    probes = [probe for row in group.rows if isinstance(probe := row.run.manifest.get("links"), dict)]
    alphas, bits = (
        sorted(float(probe[name]) for probe in probes if _is_positive(probe.get(name)))
        for name in ("alpha_seconds", "bits_per_second")
    )
    if not alphas or not bits:
        return "Links: not measured."
    return (
        f"Links, measured before each run: latency {_range(alphas, duration)}, bandwidth {_range(bits, rate)}"
        f"{f' (median of {len(probes)} runs; lowest and highest)' if len(probes) > 1 else ''}."
    )


def tables(group: Group) -> list[Table]:
    """Return the group's tables that have lines."""
    metric = spaced(group.metric)
    columns = [
        target_table(group),
        _of_settings(group, OUTCOME, "", {
            metric: lambda setting: _figure(setting, "final"),
            "best": lambda setting: _figure(setting, "best"),
            "train loss": lambda setting: _figure(setting, "train_loss"),
            "n": lambda setting: str(len(setting.counted)),
            "status": lambda setting: setting.status,
        }),
        _of_settings(group, SPEED, _about_speed(group), {
            "steps/s": lambda setting: _figure(setting, "steps_per_second"),
            "n": lambda setting: str(len(setting.counted)),
            "step p50": _mean_of("step_seconds_p50", duration),
            "step p95": _mean_of("step_seconds_p95", duration),
            "speed-up": _speed_up,
            "95 % interval": _interval,
            **_beside(group),
            "time": _mean_of("seconds", duration),
            "shared": lambda setting: f"{setting.num_sharing} of {len(setting.counted)}",
        }),
        _recorded(group, REDUCTION, {
            "encode": ("encode_seconds_p50", duration),
            "decode": ("decode_seconds_p50", duration),
            "exposed": ("exposed_seconds_p50", duration),
            "algbw": ("algbw_bytes_per_second", speed),
            "busbw": ("busbw_bytes_per_second", speed),
        }, {"step p50": ("step_seconds_p50", duration)}),
        _of_settings(group, TRAFFIC, "", {
            "payload": _mean_of("payload_bytes_per_step", size),
            **{kind: _mean_of(f"payload_{kind}_bytes_per_step", size) for kind in group.kinds},
            "wire": _mean_of("wire_bytes_per_step", size),
            "bits/element": _mean_of("bits_per_element", lambda bits: number(bits, 3)),
            "compression": _mean_of("compression", times),
        }),
        _of_settings(group, DENSITY, "", {
            "target": _mean_of("density_asked", percent),
            "achieved": _mean_of("density_had", percent),
            "on-target steps": _mean_of("density_met", percent),
        }),
        _recorded(group, COST, {
            "vNMSE": ("vnmse", lambda error: number(error, 3)),
            "state": ("state_bytes", size),
            "peak memory": ("peak_bytes", size),
        }),
        published_table(group),
        unfinished(group),
    ]  # fmt: skip
    return [table for table in columns if table.lines]


def unfinished(group: Group) -> Table:
    """Return a table of the runs without a result, with the reasons."""
    rows = group.unfinished
    return Table(
        title=UNFINISHED,
        note="The reason is the error in failure.json, or the run's last event.",
        heading=["run", "status", "reason"],
        lines=[[row.label, row.run.status, row.run.reason] for row in rows],
        hints=[row.values["folder"] for row in rows],
        series=["" for _ in rows],
    )


def single_runs(group: Group) -> Table:
    """Return a table of all runs that have figures."""
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
        lines=[[setting.label, *(text(setting) for text in columns.values())] for setting in group.settings],
        hints=[
            "\n".join([setting.label, *(row.values["folder"] for row in setting.rows[:5])])
            for setting in group.settings
        ],
        series=[setting.label for setting in group.settings],
    )


def _about_speed(group: Group) -> str:
    """Name the references of the speed-ups, and the limits of the measurement."""
    text = f"{about_references(references_of(group.settings))} "
    text += "± is one standard deviation over the n runs; p50 and p95 are means over runs."
    if sum(setting.num_sharing for setting in group.settings):
        text += " Some runs shared their machine with other runs: their times are not reliable."
    if waited := [share for row in group.rows if (share := row.values["loader_share"] or 0) >= LARGE_SHARE]:
        text += (
            f" {len(waited)} of {len(group.rows)} runs waited for their data, for up to "
            f"{100 * max(waited):.0f} % of the time; steps/s and step times are without it."
        )
    return text


def _figure(setting: Setting, name: str) -> str:
    return _spread(setting.spread(name))


def _spread(spread: Spread | None) -> str:
    """Format mean and standard deviation, and the number of values that are not finite."""
    if spread is None:
        return MISSING
    if not spread.num:
        return "not finite"
    text = number(spread.mean)
    if spread.sd is not None:
        text += f" ± {number(spread.sd, 2)}"
    return text + (f", {spread.num_not_finite} not finite" if spread.num_not_finite else "")


def _mean_of(name: str, text: Text) -> Callable[[Setting], str]:
    return lambda setting: text(setting.mean(name))


def _speed_up(setting: Setting) -> str:
    if setting.reference is setting:
        return times(1) if setting.mean("steps_per_second") else MISSING
    return MISSING if setting.speed_up is None else times(setting.speed_up.mean)


def _beside(group: Group) -> dict[str, Callable[[Setting], str]]:
    """The columns next to a speed-up: its reference, if there are several, and that over exact under `whole`.

    The latter is omitted if this is the reference of all settings.
    """

    def over_exact(setting: Setting) -> str:
        ratio = setting.speed_up_unoverlapped
        return MISSING if ratio is None else times(ratio.mean)

    columns: dict[str, Callable[[Setting], str]] = {}
    if len(references_of(group.settings)) > 1:
        columns["reference"] = _reference
    if any(setting.unoverlapped not in (None, setting.reference) for setting in group.settings):
        columns[f"over {EXACT} (whole)"] = over_exact
    return columns


def _recorded(
    group: Group,
    title: str,
    columns: Mapping[str, tuple[str, Text]],
    beside: Mapping[str, tuple[str, Text]] | None = None,
) -> Table:
    """Return a table of means; no lines if no value of `columns` is recorded, as in older runs.

    Args:
        columns: Value and format of each column.
        beside: Further columns at the right.
    """
    shown = {**columns, **(beside or {})}
    table = _of_settings(group, title, "", {
        heading: _mean_of(name, text) for heading, (name, text) in shown.items()
    })  # fmt: skip
    names = [name for name, _ in columns.values()]
    is_recorded = any(setting.mean(name) is not None for setting in group.settings for name in names)
    return table if is_recorded else replace(table, lines=[])


def _interval(setting: Setting) -> str:
    ratio = setting.speed_up
    if ratio is None:
        return MISSING
    if ratio.interval is None:
        return f"none: {ratio.how}"
    low, high = ratio.interval
    return f"{times(low)} to {times(high)}, {ratio.how}"


def _reference(setting: Setting) -> str:
    reference = setting.reference
    return MISSING if reference is None else f"{reference.label} (n = {len(reference.counted)})"


def _range(values: list[float], text: Text) -> str:
    middle = text(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({text(values[0])} to {text(values[-1])})"


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
