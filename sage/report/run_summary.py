"""What a run came to, in numbers: from its result, or from its records where it is not finished."""
# S = recorded steps of a run

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from sage.records.record import Record
from sage.report.steps import Steps, mean

TOLERANCE = 0.2
"""How far from the density asked for a step's density may lie and still count as met."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """None is what a run has no figure for, NaN a figure that was not finite."""

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
    step_seconds: Mapping[str, float | None] = field(default_factory=dict)
    """p50, p95 and p99."""
    payload_per_step: Mapping[str, float] = field(default_factory=dict)
    wire_sent_per_step: float | None = None
    wire_received_per_step: float | None = None
    density_asked: float | None = None
    density_had: float | None = None

    @property
    def wire_per_step(self) -> float | None:
        """Bytes on a rank's link in a step, both ways."""
        sent, received = self.wire_sent_per_step, self.wire_received_per_step
        return None if sent is None or received is None else sent + received

    @property
    def payload_bytes(self) -> float | None:
        """Bytes that a rank hands to its collectives in a step."""
        return sum(self.payload_per_step.values()) if self.payload_per_step else None


def of_result(result: Mapping[str, Any], epochs: Sequence[Record]) -> Figures:
    """The figures in `result.json`, which was checked against its kind."""
    names = ["seconds", "steps_per_second", "wire_sent_per_step", "wire_received_per_step"]
    names += ["density_asked", "density_had"]
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
    """The figures that an unfinished run's records give.

    Raises:
        ValueError: where the configuration names no task of SAGE.
    """
    # Here because it imports torch, which finished runs can be read without.
    from sage import registry

    if not isinstance(config["task"], str):
        raise ValueError(f"config.json is damaged: task is {config['task']!r}, not a text")
    task: Any = registry.load("tasks", config["task"])
    better = task.better[task.metric]
    reached = [value for each in epochs if (value := each["metrics"].get(task.metric)) is not None]
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
    )


def has_target(config: Mapping[str, Any], figures: Figures) -> bool:
    """Whether the run was asked for a density.

    Records of earlier versions say 1.0 where a reducer has no target: they count as a target only where an
    option of the reducer names a density.
    """
    if figures.density_asked is None or config["reducer"] == "exact":
        return False
    options = config.get("reducer_options", {})
    return figures.density_asked < 1 or any("density" in name for name in options)


def density_met(steps: Steps) -> float | None:
    """The share of steps whose density was within the tolerance of the one asked for."""
    asked_S, had_S = steps["density_asked"], steps["density_had"]
    known_S = (asked_S > 0) & numpy.isfinite(had_S)
    if not known_S.any():
        return None
    return float((abs(had_S[known_S] / asked_S[known_S] - 1) <= TOLERANCE).mean())


def _measured(content: Mapping[str, Any], name: str) -> float | None:
    """The figure, NaN where it was measured but not finite, and None where it was not measured."""
    value: float | None = content.get(name)
    return math.nan if value is None and name in content else value
