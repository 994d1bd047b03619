"""Running totals of a run's measurements, saved in checkpoints, and the result computed from them."""
# W = ranks, S = steps

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sage.records.loader import loader_share

WARM_UP = 0.1
"""Share of the first steps (at most ten steps) that are excluded from the step times."""

IN_NODE = ("wire_sent_in_node", "wire_received_in_node")
"""Fields of a step that only runs on two levels have; their mean is in the result."""

PER_STEP = ("wire_sent", "wire_received", *IN_NODE, "density_had", "density_asked")
"""Fields of a step whose mean is in the result; `density_asked` is None for reducers without a target."""


class RunningMetrics:
    """Sums over the steps and evaluations of a run, on one rank."""

    def __init__(self) -> None:
        self.step_seconds: list[float] = []
        self.evaluations: list[dict[str, float]] = []
        self._totals: Counter[str] = Counter()
        self._loss_sum, self._loss_count = 0.0, 0

    def add_step(self, fields: Mapping[str, Any]) -> None:
        """Add the record of one step."""
        self.step_seconds.append(fields["seconds"])
        self._totals.update({f"payload/{kind}": size for kind, size in fields["bytes"].items()})
        self._totals.update({name: fields[name] for name in PER_STEP if fields.get(name) is not None})
        if fields.get("vnmse") is not None:
            self._totals.update({"vnmse": fields["vnmse"], "vnmse_steps": 1})
        # With the times of the same steps, because a checkpoint of an earlier version has neither.
        self._totals["loader_seconds"] += fields["loader_seconds"]
        self._totals["seconds_with_loader"] += fields["seconds"]

    def add_loss(self, loss: float) -> None:
        """Add one step's training loss, unless it is not finite, as it may be for a skipped step."""
        if math.isfinite(loss):
            self._loss_sum += loss
            self._loss_count += 1

    def take_mean_loss(self) -> float:
        """Return the mean training loss since the last call, and reset it."""
        mean = self._loss_sum / max(1, self._loss_count)
        self._loss_sum, self._loss_count = 0.0, 0
        return mean

    @property
    def loader_share(self) -> float:
        """Share of the time in which this rank waited for its batches."""
        return loader_share(self._totals["loader_seconds"], self._totals["seconds_with_loader"]) or 0.0

    def result(self, seconds_WS: Tensor, loader_share: float, *, metric: str, better: str) -> dict[str, Any]:
        """Return the measured values of `result.json`.

        Args:
            loader_share: The largest share of a rank.
            seconds_WS: Step times of all ranks; the slowest rank of each step is used.
            metric, better: The headline metric, and whether larger (`max`) or smaller (`min`) is better.
        """
        slowest_S = seconds_WS.amax(0)[min(10, int(WARM_UP * seconds_WS.shape[1])) :]
        quantiles = torch.quantile(slowest_S, torch.tensor([0.5, 0.95, 0.99], dtype=torch.float64)).tolist()
        finite = [e[metric] for e in self.evaluations if math.isfinite(e[metric])]
        mean = {name: total / len(self.step_seconds) for name, total in self._totals.items()}
        return {
            "metric": metric,
            "better": better,
            "final": self.evaluations[-1],
            "best": (max if better == "max" else min)(finite, default=None),
            "steps_per_second": len(slowest_S) / float(slowest_S.sum()),
            "loader_share": loader_share,
            "step_seconds": dict(zip(("p50", "p95", "p99"), quantiles, strict=True)),
            "payload_per_step": {
                name.removeprefix("payload/"): size
                for name, size in mean.items()
                if name.startswith("payload/")
            },
            "wire_sent_per_step": mean["wire_sent"],
            "wire_received_per_step": mean["wire_received"],
            **{f"{name}_per_step": mean[name] for name in IN_NODE if name in mean},
            **self._mean_vnmse(),
            "density_asked": mean.get("density_asked"),
            "density_had": mean["density_had"],
        }

    def _mean_vnmse(self) -> dict[str, float]:
        """The mean over the steps in which it was measured; nothing if there are none."""
        steps = self._totals["vnmse_steps"]
        return {"vnmse": self._totals["vnmse"] / steps} if steps else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "step_seconds": torch.tensor(self.step_seconds, dtype=torch.float64),
            "evaluations": self.evaluations,
            "totals": dict(self._totals),
            "loss": [self._loss_sum, self._loss_count],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.step_seconds = state["step_seconds"].tolist()
        self.evaluations = state["evaluations"]
        self._totals = Counter(state["totals"])
        self._loss_sum, self._loss_count = state["loss"]
