"""The figures of a run: from its result, or from its records if it is not finished."""
# S = recorded steps of a run

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from sage.records.loader import loader_share
from sage.records.record import Record
from sage.report.steps import Steps, mean

TOLERANCE = 0.2
"""Largest relative deviation from the target density at which a step is on target."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of a run: None where it has no value, NaN where a value was not finite."""

    metric: str
    better: str
    """`max` or `min`."""
    steps: int
    parameters: int | None = None
    final: float | None = None
    best: float | None = None
    train_loss: float | None = None
    seconds: float | None = None
    steps_per_second: float | None = None
    loader_share: float | None = None
    """Largest share of a rank's time in which it waits for its data; of rank 0 if the run is unfinished."""
    step_seconds: Mapping[str, float | None] = field(default_factory=dict)
    """p50, p95 and p99."""
    payload_per_step: Mapping[str, float] = field(default_factory=dict)
    wire_sent_per_step: float | None = None
    wire_received_per_step: float | None = None
    density_asked: float | None = None
    density_had: float | None = None
    vnmse: float | None = None
    """Error of the reduced gradient: mean over the steps in which it was measured."""
    state_bytes: float | None = None
    peak_bytes: float | None = None

    @property
    def wire_per_step(self) -> float | None:
        """Bytes per step sent and received on a rank's link."""
        sent, received = self.wire_sent_per_step, self.wire_received_per_step
        return None if sent is None or received is None else sent + received

    @property
    def payload_bytes(self) -> float | None:
        """Bytes per step that a rank passes to collectives."""
        return sum(self.payload_per_step.values()) if self.payload_per_step else None


def of_result(result: Mapping[str, Any], epochs: Sequence[Record]) -> Figures:
    """Read the figures from `result.json`, which has been checked against its schema."""
    names = ["seconds", "steps_per_second", "wire_sent_per_step", "wire_received_per_step"]
    names += ["density_asked", "density_had", "loader_share", "vnmse", "state_bytes", "peak_bytes"]
    parameters = result.get("parameters")
    payload = result.get("payload_per_step") or {}
    return Figures(
        metric=result["metric"],
        better=result.get("better", "max"),
        steps=result["steps"],
        parameters=parameters if isinstance(parameters, int) and 0 < parameters < 2**63 else None,
        final=_measured(result["final"], result["metric"]),
        best=_measured(result, "best") if epochs else result.get("best"),
        train_loss=_measured(epochs[-1], "train_loss") if epochs else None,
        step_seconds={q: result.get("step_seconds", {}).get(q) for q in ("p50", "p95", "p99")},
        payload_per_step={kind: count or 0.0 for kind, count in payload.items()},
        **{name: result.get(name) for name in names},
    )


def of_records(config: Mapping[str, Any], steps: Steps, epochs: Sequence[Record]) -> Figures:
    """Compute the figures of an unfinished run from its records.

    Raises:
        ValueError: if the task in the configuration does not exist.
    """
    # Imported here because it imports torch, which is not needed to read finished runs.
    from sage import registry

    if not isinstance(config["task"], str):
        raise ValueError(f"config.json is damaged: task is {config['task']!r}, not a text")
    task: Any = registry.load("tasks", config["task"])
    better = task.better[task.metric]
    reached = [value for epoch in epochs if (value := epoch["metrics"].get(task.metric)) is not None]
    seconds_S = steps["seconds"][numpy.isfinite(steps["seconds"])]
    per_step = mean(seconds_S)
    num_steps = int(steps["step"][-1]) + 1 if len(steps) else 0
    return Figures(
        metric=task.metric,
        better=better,
        steps=num_steps,
        final=_measured(epochs[-1]["metrics"], task.metric) if epochs else None,
        best=(math.nan if not reached else max(reached) if better == "max" else min(reached))
        if epochs
        else None,
        train_loss=_measured(epochs[-1], "train_loss") if epochs else None,
        seconds=None if per_step is None else num_steps * per_step,
        steps_per_second=1 / per_step if per_step else None,
        step_seconds={f"p{q}": float(numpy.percentile(seconds_S, q)) for q in (50, 95, 99) if len(seconds_S)},
        payload_per_step=steps.payload,
        wire_sent_per_step=steps.mean("wire_sent"),
        wire_received_per_step=steps.mean("wire_received"),
        density_asked=steps.mean("density_asked"),
        density_had=steps.mean("density_had"),
        vnmse=steps.mean("vnmse"),
        loader_share=_loader_share(steps),
    )


def has_target(config: Mapping[str, Any], figures: Figures) -> bool:
    """Whether the run has a target density.

    Earlier versions record 1.0 for a reducer without a target. A recorded 1.0 therefore counts as a target
    only if the reducer has an option that names a density.
    """
    if figures.density_asked is None or config["reducer"] == "exact":
        return False
    options = config.get("reducer_options", {})
    return figures.density_asked < 1 or any("density" in name for name in options)


def density_met(steps: Steps) -> float | None:
    """Share of on-target steps: achieved density within the tolerance of the target; None if not recorded."""
    target_S, achieved_S = steps["density_asked"], steps["density_had"]
    known_S = (target_S > 0) & numpy.isfinite(achieved_S)
    if not known_S.any():
        return None
    return float((abs(achieved_S[known_S] / target_S[known_S] - 1) <= TOLERANCE).mean())


def _loader_share(steps: Steps) -> float | None:
    """Share of rank 0's time in which it waits for its data, over the steps that have both times."""
    waited_S, seconds_S = steps["loader_seconds"], steps["seconds"]
    known_S = numpy.isfinite(waited_S + seconds_S)
    return loader_share(float(waited_S[known_S].sum()), float(seconds_S[known_S].sum()))


def _measured(content: Mapping[str, Any], name: str) -> float | None:
    """Return the value; NaN if it was measured but not finite, None if it was not measured."""
    value: float | None = content.get(name)
    return math.nan if value is None and name in content else value
