"""Groups of comparable runs: labels, settings aggregated over seeds, ratios to the exact baseline."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sage.comm.ledger import KINDS, ring_all_reduce
from sage.output.units import printable
from sage.report.labels import labels
from sage.report.run_summary import density_met, has_target
from sage.report.runs import EXACT, Run
from sage.report.seeds import Ratio, Spread, ratio, spread
from sage.report.sharing import load, sharing
from sage.report.time_to_target.targets import Target, Targets, reached, target_of

Values = dict[str, Any]
"""A run's line in report.csv: None where a run has no value, NaN where a value was not finite."""

SAME_WORK = (
    "task",
    "model",
    "data",
    "batch_size",
    "accumulate",
    "threads",
    "device",
    "amp",
    "workers_in_process",
)
"""Settings that, with the options of model and data, determine the time of a step without a reducer."""

OWN = ("reducer", "seed", "memory", "memory_beta", "memory_gamma", "memory_lr_ratio", "min_compress")
"""Settings that may differ between a run and its baseline."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A run and its label within its group."""

    run: Run
    label: str
    """The reducer, and the settings that distinguish this run from others with the same reducer."""
    series: str
    """The label without the seed. Runs of a series share one line style."""
    values: Values

    @property
    def has_figures(self) -> bool:
        """Whether the run has a result or at least one recorded step."""
        return self.run.is_finished or len(self.run.steps) > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """The runs of a group that differ only in the seed, aggregated into one line."""

    label: str
    rows: list[Row]
    baseline: "Setting | None" = None
    """The exact runs with the same model, data and batch size; None if there are none."""

    @cached_property
    def counted(self) -> list[Row]:
        """The runs that figures are computed from: the finished ones, or all if none is finished."""
        return [row for row in self.rows if row.run.is_finished] or self.rows

    def spread(self, name: str) -> Spread | None:
        """Mean and standard deviation of a value over the counted runs."""
        return spread(row.values.get(name) for row in self.counted)

    def mean(self, name: str) -> float | None:
        """Mean of a value over the counted runs; NaN if it is finite in none of them."""
        found = self.spread(name)
        return None if found is None else found.mean

    @cached_property
    def speed_up(self) -> Ratio | None:
        """Ratio of steps per second to the baseline's."""
        if self.baseline is None or self.baseline is self:
            return None
        ours, theirs = (
            [(row.run.config["seed"], row.values["steps_per_second"]) for row in setting.counted]
            for setting in (self, self.baseline)
        )
        return ratio(ours, theirs)

    @property
    def num_sharing(self) -> int:
        """Number of counted runs that shared a machine with another run."""
        return sum(bool(row.values["shared_with"]) for row in self.counted)

    @property
    def status(self) -> str:
        """The statuses of the runs, with the number of runs for each."""
        counts = Counter(row.run.status for row in self.rows)
        if len(counts) == 1:
            (status,) = counts
            return status if len(self.rows) == 1 else f"{len(self.rows)} {status}"
        words = [f"{count} {status}" for status, count in counts.most_common(3)]
        left = len(self.rows) - sum(count for _, count in counts.most_common(3))
        return "; ".join([*words, f"{left} others"] if left else words)


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Comparable runs: one workload, one world size."""

    workload: str
    world_size: int
    metric: str
    better: str
    rows: list[Row]
    settings: list[Setting] = field(default_factory=list)
    """The settings that have figures, aggregated over seeds."""
    target: Target | None = None
    """The value of the metric to reach, fixed before the runs; None if there is none."""

    @property
    def title(self) -> str:
        """The workload and the number of ranks, as a heading."""
        return f"{printable(self.workload)}, {self.world_size} rank{'s' if self.world_size > 1 else ''}"

    @cached_property
    def kinds(self) -> list[str]:
        """The kinds of payload in the ledger's order, then other kinds by name."""
        kinds = {kind for row in self.rows for kind in row.run.figures.payload_per_step}
        return sorted(kinds, key=lambda kind: (KINDS.index(kind) if kind in KINDS else len(KINDS), kind))

    @property
    def unfinished(self) -> list[Row]:
        """The runs without a result."""
        return [row for row in self.rows if not row.run.is_finished]


def grouped(runs: Iterable[Run], targets: Targets | None = None) -> list[Group]:
    """Group runs by workload, number of ranks and metric. Within a group, exact comes first.

    Args:
        targets: the values of the metrics to reach; a group without one has the runs' own `target`, if any.
    """
    runs = list(runs)
    shared = dict(zip(map(id, runs), sharing(runs), strict=True))
    alike: dict[tuple[str, int, str], list[Run]] = defaultdict(list)
    for run in runs:
        alike[run.config["workload"], run.config["world_size"], run.figures.metric].append(run)
    groups = []
    for (workload, world_size, metric), members in sorted(alike.items(), key=lambda item: item[0]):
        named = labels(members)
        target = target_of(members, targets or {})
        rows = [
            Row(
                run=run,
                label=label,
                series=series,
                values=_values(run, label, series, shared[id(run)], target),
            )
            for run, (label, series) in zip(members, named, strict=True)
        ]
        rows.sort(key=lambda row: (row.values["reducer"] != EXACT, row.label, str(row.run.folder)))
        settings = _folded(rows)
        _compare(settings, rows)
        groups.append(
            Group(
                workload=workload,
                world_size=world_size,
                metric=metric,
                better=members[0].figures.better,
                rows=rows,
                settings=settings,
                target=target,
            )
        )
    return groups


def _values(run: Run, label: str, series: str, shared_with: int, target: Target | None) -> Values:
    figures = run.figures
    at = None if target is None else reached(run, target.value)
    is_targeted = has_target(run.config, figures)
    return {
        **{name: run.config[name] for name in ("workload", "world_size", "reducer")},
        "label": label,
        "setting": series,
        "seed": run.config["seed"],
        "status": run.status,
        "metric": figures.metric,
        "better": figures.better,
        **{name: getattr(figures, name) for name in ("final", "best", "train_loss", "steps", "seconds")},
        "steps_per_second": figures.steps_per_second,
        **{f"step_seconds_{q}": figures.step_seconds.get(q) for q in ("p50", "p95", "p99")},
        "speed_up": None,
        "target": None if target is None else target.value,
        "steps_to_target": None if at is None else at.steps,
        "seconds_to_target": None if at is None else at.seconds,
        "wire_bytes_per_step": figures.wire_per_step,
        "wire_sent_bytes_per_step": figures.wire_sent_per_step,
        "wire_received_bytes_per_step": figures.wire_received_per_step,
        "compression": None,
        "density_asked": figures.density_asked if is_targeted else None,
        "density_had": figures.density_had,
        "density_met": density_met(run.steps) if is_targeted else None,
        "payload_bytes_per_step": figures.payload_bytes,
        **{f"payload_{kind}_bytes_per_step": size for kind, size in figures.payload_per_step.items()},
        "load_at_start": load(run, "start"),
        "load_at_end": load(run, "end"),
        "shared_with": shared_with,
        "reason": "" if run.is_finished else run.reason,
        "folder": printable(run.folder),
    }


def _folded(rows: Sequence[Row]) -> list[Setting]:
    """Return the settings that have figures, each with its baseline."""
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.has_figures:
            members[row.series].append(row)
    exacts = {
        label: Setting(label=label, rows=those)
        for label, those in members.items()
        if those[0].values["reducer"] == EXACT
    }
    known = _by_likeness(exacts.values())
    settings = []
    for label, those in members.items():
        baseline = next((known[key] for key in _likenesses(those[0].run) if key in known), None)
        settings.append(exacts.get(label) or Setting(label=label, rows=those, baseline=baseline))
    return settings


def _by_likeness(exacts: Iterable[Setting]) -> dict[Any, Setting]:
    """Index the exact settings by the keys of `_likenesses`; finished ones take precedence."""
    known: dict[Any, Setting] = {}
    for exact in sorted(exacts, key=lambda each: not each.counted[0].run.is_finished):
        for key in _likenesses(exact.rows[0].run):
            known.setdefault(key, exact)
    return known


def _likenesses(run: Run) -> list[Any]:
    """Return keys that a run may share with its baseline, closest match first; the last is the same work."""
    others = frozenset(item for item in run.common.items() if item[0] not in OWN)
    work = frozenset(
        (name, value)
        for name, value in run.common.items()
        if name in SAME_WORK or name.startswith(("model.", "data."))
    )
    place = str(run.folder.parent)
    return [(others, place), (others, None), (work, place), (work, None)]


def _compare(settings: Iterable[Setting], rows: Sequence[Row]) -> None:
    """Set `speed_up` and `compression` in the rows."""
    # An unfinished run does not record its number of parameters; a finished run of the same model does.
    sizes = {_model(row.run): count for row in rows if (count := row.run.figures.parameters)}
    for setting in settings:
        baseline = setting.baseline
        exact = setting if baseline is None and setting.rows[0].values["reducer"] == EXACT else baseline
        speed = None if exact is None else exact.mean("steps_per_second")
        measured = None if exact is None else exact.mean("wire_bytes_per_step")
        for row in setting.rows:
            values = row.values
            dense = measured or _dense_bytes(sizes.get(_model(row.run)), values["world_size"])
            values["speed_up"] = _over(values["steps_per_second"], speed)
            values["compression"] = _over(dense, values["wire_bytes_per_step"])


def _dense_bytes(parameters: int | None, world_size: int) -> float | None:
    """Bytes that a ring all-reduce of all gradients in float32 sends and receives on a rank's link."""
    return None if parameters is None or world_size == 1 else sum(ring_all_reduce(4 * parameters, world_size))


def _model(run: Run) -> tuple[Any, ...]:
    common = run.common
    options = [item for item in common.items() if item[0].startswith(("model.", "data."))]
    return common.get("model"), common.get("data"), *options


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
