"""Groups of comparable runs: labels, settings aggregated over seeds, ratios to the dense reference."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from sage.comm.ledger import KINDS
from sage.output.units import printable
from sage.report.bandwidth import bandwidths, bits_per_element
from sage.report.baselines import compare, folded
from sage.report.labels import labels
from sage.report.run_summary import density_met, has_target
from sage.report.runs import EXACT, Run
from sage.report.settings import Row, Setting, Values
from sage.report.sharing import load, sharing
from sage.report.time_to_target.targets import Target, Targets, reached, target_of

REDUCTION = ("encode_seconds", "decode_seconds", "exposed_seconds")
"""Fields of a step whose medians over the steps are values of a run."""


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
        targets: The values of the metrics to reach; a group without one uses the runs' `target`, if any.
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
        settings = folded(rows)
        compare(settings, rows)
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
        "loader_share": figures.loader_share,
        "reference": None,
        "speed_up": None,
        "speed_up_unoverlapped": None,
        **{f"{name}_p50": run.steps.median(name) for name in REDUCTION},
        **bandwidths(run),
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
        "bits_per_element": bits_per_element(figures),
        **{name: getattr(figures, name) for name in ("vnmse", "state_bytes", "peak_bytes")},
        "load_at_start": load(run, "start"),
        "load_at_end": load(run, "end"),
        "shared_with": shared_with,
        "reason": "" if run.is_finished else run.reason,
        "folder": printable(run.folder),
    }
