"""The tables of a prediction, as Markdown whose columns are aligned."""

import math
from collections.abc import Sequence

from sage.output.units import MISSING, duration, percent, printable, rate, size, times
from sage.predict.closed_forms import Intervals
from sage.predict.grid import MOUNTS, Row, clusters
from sage.predict.limits import Limits
from sage.predict.prediction import MeasuredLink, Prediction
from sage.predict.step_time import FAR

MOST_TABLES = 4
"""With more combinations of world size and bandwidth, the steps of all methods are not printed."""


def markdown(prediction: Prediction, *, everything: bool) -> str:
    """Return the tables of a prediction.

    Args:
        prediction: what was predicted.
        everything: whether to list the steps of all methods for every world size and bandwidth, however many.
    """
    groups = list(clusters(prediction.rows))
    blocks = [f"# {title(prediction)}", first_line(groups), summary(groups)]
    if everything or len(groups) <= MOST_TABLES:
        blocks += [f"## {where(rows[0])}\n\n{steps(rows)}" for rows in groups]
    blocks += ["## Links", LINKS_NOTE, links(prediction.links)] if prediction.links else []
    if prediction.limits:
        blocks += ["## Limits", LIMITS_NOTE, limits(prediction.limits)]
    notes = dict.fromkeys(note for row in prediction.rows for note in row.notes)
    blocks.append("## Notes\n\n" + "\n".join(f"- {note}" for note in [*_general_notes(prediction), *notes]))
    # The names come from a file.
    return "\n".join(map(printable, "\n\n".join(blocks).split("\n"))) + "\n"


def title(prediction: Prediction) -> str:
    """Name the model and the calibration."""
    calibration, model = prediction.calibration, prediction.calibration.model
    return (
        f"Predicted steps of {model.workload}: {model.numel:,} parameters, batch size {model.batch_size}, "
        f"calibrated at {calibration.world_size} ranks"
    )


def first_line(groups: Sequence[list[Row]]) -> str:
    """State in how many set-ups a method pays."""
    compressed = [row for rows in groups for row in rows if row.verdict != "dense"]
    pays = sum(row.verdict == "pays" for row in compressed)
    of = f"{pays} of {len(compressed)} set-ups pay"
    return f"{of}: their predicted step is shorter than overlapped bf16's, and than every dense method's."


def summary(groups: Sequence[list[Row]]) -> str:
    """Return a table with the fastest compressing method of each world size and bandwidth."""
    lines = []
    for rows in groups:
        first = rows[0]
        base = [first.cluster or MISSING, _ranks(first), _bits(first), duration(first.reference_seconds)]
        best = next((row for row in rows if row.verdict != "dense"), None)
        of_best = [MISSING] * 4
        if best is not None:
            verdict = {"pays": "pays", "does not pay": "nothing pays"}.get(best.verdict, "undecided")
            of_best = [best.label, _band(best), _speedup(best), verdict]
        lines.append([*base, _needed(first), *of_best])
    heading = [
        "cluster",
        "ranks",
        "bandwidth",
        "bf16 × ddp",
        "compression needed",
        "fastest compressed",
        "step",
        "speed-up",
        "verdict",
    ]
    if all(row[0] == MISSING for row in lines):
        heading, lines = heading[1:], [row[1:] for row in lines]
    return table(heading, lines)


def steps(rows: Sequence[Row]) -> str:
    """Return a table of all methods at one world size and bandwidth, fastest first."""
    return table(
        ["method", "step", "communication", "exposed", "encode, decode", "budget", "speed-up", "verdict"],
        [
            [
                row.label,
                _band(row),
                duration(row.communication_seconds),
                duration(row.exposed_seconds),
                duration(row.coding_seconds),
                _budget(row),
                _speedup(row),
                row.verdict,
            ]
            for row in rows
        ],
    )


LINKS_NOTE = (
    "Latency of a message and bandwidth of a link, fitted to all sizes and numbers of ranks, ± one standard "
    "error. A burst is what a link passes at once, before its bandwidth limits the rest, as through a token "
    "bucket. The residual is the largest of measured over fitted time, less 1, with its size."
)


def links(measured: Sequence[MeasuredLink]) -> str:
    """Return a table of the fitted links."""
    lines = []
    for link in measured:
        size_, residual = max(link.residuals.items(), key=lambda pair: abs(pair[1]))
        lines.append(
            [
                link.collective,
                link.scope,
                f"{duration(link.latency_seconds)} ± {duration(link.latency_error)}",
                rate(link.bits_per_second) if math.isfinite(link.bits_per_second) else MISSING,
                percent(link.bandwidth_error),
                size(link.burst_bytes) if link.burst_bytes else MISSING,
                f"{percent(residual)} at {size(size_)}",
            ]
        )
    return table(["collective", "scope", "latency", "bandwidth", "±", "burst", "largest residual"], lines)


LIMITS_NOTE = (
    "Bandwidths at which a method is faster than overlapped bf16: by the formulas for equal buckets, in "
    "closed form and by their roots, and by the predicted steps of each mount. `un-overlapped fp32` compares "
    "with an all-reduce of float32 after backward, which is not what DistributedDataParallel does. From "
    "`most ranks` on, a gather moves more bytes than bf16's all-reduce."
)


def limits(rows: Sequence[Limits]) -> str:
    """Return a table of the limits."""
    heading = [
        "method", "ranks", "closed form", "by roots", "whole", "ddp", "un-overlapped fp32", "most ranks",
        "memory",
    ]  # fmt: skip
    lines = []
    for limit in rows:
        fp32: Intervals = ((0.0, limit.without_overlap),) if limit.without_overlap else ()
        ceiling = MISSING if limit.most_ranks is None else f"{limit.most_ranks:.0f}"
        lines.append(
            [
                f"{limit.name}, {limit.cluster}" if limit.cluster else limit.name,
                str(limit.ranks),
                *map(bandwidths, (limit.closed_form, limit.by_roots)),
                *(
                    bandwidths(limit.by_recurrence[m]) if m in limit.by_recurrence else MISSING
                    for m in MOUNTS
                ),
                bandwidths(fp32),
                ceiling,
                size(limit.memory_bytes),
            ]
        )
    return table(heading, lines)


def bandwidths(intervals: Intervals) -> str:
    """Format intervals of bandwidth.

    >>> bandwidths(((0.0, 1e9),)), bandwidths(()), bandwidths(((0.0, math.inf),))
    ('< 1 Gbit/s', 'never', 'always')
    >>> bandwidths(((1e6, 1e9), (1e12, math.inf)))
    '1 Mbit/s to 1 Gbit/s, > 1 Tbit/s'
    """

    def one(low: float, high: float) -> str:
        if low == 0:
            return "always" if math.isinf(high) else f"< {rate(high)}"
        return f"> {rate(low)}" if math.isinf(high) else f"{rate(low)} to {rate(high)}"

    return ", ".join(one(low, high) for low, high in intervals) or "never"


def table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns have equal widths; the first is aligned to the left."""
    rows = [[cell.replace("|", "\\|") for cell in line] for line in (heading, *lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cells[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def where(row: Row) -> str:
    """Name a world size and bandwidth."""
    name = f"{row.cluster}: " if row.cluster else ""
    return f"{name}{_ranks(row)} ranks, {_bits(row)}"


def _general_notes(prediction: Prediction) -> list[str]:
    most = FAR * max([prediction.calibration.world_size, *(s.ranks for s in prediction.calibration.links)])
    lines = [
        "Intervals are 95 %: measured times are resampled, and latency and bandwidth drawn from their fit.",
    ]
    ratios = {row.reducer: row.steps_ratio for row in prediction.rows if row.steps_ratio != 1}
    if ratios:
        listed = ", ".join(f"{name} {ratio:g}" for name, ratio in ratios.items())
        lines.append(
            f"Speed-ups and limits are those of the time to a target, with these ratios of steps: {listed}."
        )
    calibration = prediction.calibration
    lines.append(
        f"Computation is as calibrated, with {min(calibration.ranks_per_node, calibration.world_size)} ranks "
        "on a node: ranks that share cores compute more slowly."
    )
    if any(row.is_model for row in prediction.rows):
        lines.append(f"model: above {most} ranks, four times the largest measured world size.")
    return lines


def _ranks(row: Row) -> str:
    return f"{row.ranks}{' (model)' if row.is_model else ''}"


def _bits(row: Row) -> str:
    return "as measured" if row.bits_per_second is None else rate(row.bits_per_second)


def _band(row: Row) -> str:
    return f"{duration(row.seconds)} ({duration(row.seconds_low)} to {duration(row.seconds_high)})"


def _budget(row: Row) -> str:
    """The time that encoding and decoding may take."""
    budget = row.coding_budget_seconds
    return MISSING if budget is None else duration(budget) if budget > 0 else "none"


def _needed(row: Row) -> str:
    """The compression that hides the communication of bf16."""
    compression = row.compression_needed
    if compression is None:
        return MISSING
    return (
        "none" if compression <= 1 else times(compression) if math.isfinite(compression) else "not possible"
    )


def _speedup(row: Row) -> str:
    return f"{times(row.speedup)} ({times(row.speedup_low)} to {times(row.speedup_high)})"
