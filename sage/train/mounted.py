"""The interface of a mount in `sage run`: from a step's micro-batches to the mean gradient."""
# N = elements of a flat gradient

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sage.comm.replicas import Replicas
from sage.comm.wire import Wire
from sage.config import Config
from sage.data.dataset import Batch
from sage.mount.flat import Flat
from sage.mount.memory_use import num_state_bytes
from sage.reduction.reducer import Reduced, Reducer
from sage.tasks import Task
from sage.timing import Spans
from sage.train.optim import LossScale, joint_norm
from sage.train.reduction_error import ReductionError

HISTOGRAM_SAMPLE = 2**18
"""Number of evenly spaced gradient elements in a histogram."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The parts of a run that a mount connects."""

    config: Config
    wire: Wire
    model: nn.Module
    task: Task
    reducer: Reducer
    """The reducer, not yet bound."""
    loss_scale: LossScale
    spans: Spans
    """Spans of the trace; the mount adds those of its own threads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepGradient:
    """What a mount returns for one step; the mean gradient itself is in each parameter's `.grad`."""

    loss: Tensor
    """Mean loss of this rank's micro-batches."""
    skipped: bool
    """Whether the gradient of any rank was not finite, so that no state has changed; equal on all ranks."""
    sample: Tensor | None = None
    """Absolute values of evenly spaced elements of this rank's gradient before the reduction, on request."""


class Mounted:
    """Computes and reduces the gradients of a step; one subclass for each value of `--mount`.

    In a step, every mount does the following to this rank's gradient: it divides it by the loss scale, checks
    it if steps may be skipped, applies decay and momentum before the reduction, clips it locally, and reduces
    it with error feedback. `sage.train.choose_mount` states when each mount does this.
    """

    is_local: ClassVar[bool] = False
    """Whether every rank updates weights of its own between two reductions (`sage.train.mounted_local`)."""
    is_finite: bool = True
    """Whether this rank's last pseudo-gradient was finite."""
    flats: Sequence[Flat]
    """The flat gradients, each with its reducer and error feedback; after `compute` they hold the mean."""

    def __init__(self, parts: Parts) -> None:
        self.trained = parts.model
        """The module with the parameters that the optimiser updates."""
        self.config, self.wire, self.loss_scale = parts.config, parts.wire, parts.loss_scale
        self.spans = parts.spans
        self.error = ReductionError(parts.config)
        self.device = next(parts.model.parameters()).device
        self.may_skip = parts.config.non_finite == "skip" or parts.loss_scale.enabled
        self._reduced: list[Reduced] = []
        """Results of the last step's reductions, of each flat gradient; empty if the step was skipped."""

    # Each mount defines:

    def compute(self, batches: list[Batch], lr: float, *, sampled: bool) -> StepGradient:
        """Run the forward and backward passes of a step and reduce its gradient; a collective call.

        Args:
            batches: The step's micro-batches.
            lr: The learning rate of the step.
            sampled: Whether to return a sample of the gradient.
        """
        raise NotImplementedError

    def is_finite_here(self, batches: list[Batch]) -> bool:
        """Compute this rank's gradient again, without a reduction; return whether it is finite."""
        raise NotImplementedError

    def seconds(self) -> dict[str, float]:
        """The times of the last reduction, by their names in the record of a step."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """State of this rank: `feedback` (reducers and error feedback) and `before` (momentum)."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        raise NotImplementedError

    # A mount with local updates defines these too:

    def begin_step(self, step: int) -> None:
        """Receive the number of the step that begins."""

    def end_step(self, lr: float, *, is_last: bool) -> bool:
        """Receive that the optimiser has taken its step, or that the step was skipped; a collective call.

        Args:
            lr: The learning rate of the step.
            is_last: Whether it is the last step of the run.

        Returns:
            False if the mean that the weights were to be updated with is not finite; the same on all ranks.
        """
        return True

    @property
    def is_alone(self) -> bool:
        """Whether the gradient of this step is this rank's own, and not the mean over ranks."""
        return False

    def fields(self) -> dict[str, Any]:
        """Fields that the mount adds to the record of a step."""
        return {}

    def common_model(self) -> AbstractContextManager[None]:
        """Within the context, the model has the weights that all ranks have in common."""
        return nullcontext()

    def take_phases(self) -> dict[str, float]:
        """Seconds by phase that threads of the mount have spent since the last call, in a profiling run."""
        return {}

    def close(self) -> None:
        """End the threads of the mount."""

    # A mount that shards the model defines these too:

    def evaluating(self) -> AbstractContextManager[None]:
        """Within the context, forward passes of the model need no communication; a collective call."""
        return nullcontext()

    def replicas(self) -> Replicas:
        """Return the tensors that must be the same on several ranks, for comparisons."""
        return Replicas(self.wire, self.trained.named_parameters())

    def norm(self) -> Tensor:
        """Norm of the gradient that `compute` left; the same on all ranks; a collective call."""
        return joint_norm(self.gradient)

    def gathered(self, shared: dict[str, Any], trained: Sequence[Tensor]) -> dict[str, Any]:
        """Return the shared state of a checkpoint with whole tensors; a collective call.

        Args:
            shared: State of the model, its running average and the optimiser, as on this rank.
            trained: The optimiser's parameters, in the order of its state.
        """
        return shared

    def scattered(self, shared: dict[str, Any], trained: Sequence[Tensor]) -> dict[str, Any]:
        """Return this rank's part of what `gathered` returned; tensors of other shapes stay as they are."""
        return shared

    # The same for every mount:

    def begin_epoch(self, epoch: int, lr: float) -> None:
        """Notify the reducers that an epoch begins."""
        for flat in self.flats:
            flat.begin_epoch(epoch, lr, self.wire)

    @property
    def num_elements(self) -> int:
        """Number of elements of the gradient."""
        return sum(flat.layout.numel for flat in self.flats)

    @property
    def gradient(self) -> list[Tensor]:
        """The flat vectors of the gradient."""
        return [flat.grad_N for flat in self.flats]

    def density(self) -> float:
        """Share of the compressed elements that the last step sent, mean over ranks; 0 if it was skipped."""
        if len(self._reduced) <= 1:
            return sum((reduced.density for reduced in self._reduced), 0.0)
        return self._weighted([reduced.density for reduced in self._reduced])

    def union(self) -> float | None:
        """Share of elements sent by any rank, without those that sum to 0; None: all, or unknown."""
        if not self._reduced or any(reduced.union_M is None for reduced in self._reduced):
            return None
        nonzero = sum(int(reduced.mean_N.count_nonzero()) for reduced in self._reduced)
        return nonzero / max(1, sum(reduced.mean_N.numel() for reduced in self._reduced))

    def report(self) -> dict[str, float]:
        """Scalars of the reducers' last step.

        Of several flat gradients, these are the densities that all their reducers report.
        """
        reports = [flat.feedback.reducer.report() for flat in self.flats]
        if len(reports) == 1:
            return reports[0]
        names = ("density_asked", "density_selected")
        shared = [name for name in names if all(name in report for report in reports)]
        return {name: self._weighted([report[name] for report in reports]) for name in shared}

    def residual_norm(self) -> float | None:
        """Norm of the residual; None without error feedback."""
        residuals = [flat.feedback.residual() for flat in self.flats]
        vectors = [residual_N for residual_N in residuals if residual_N is not None]
        return float(joint_norm(vectors)) if vectors else None

    def state_bytes(self) -> int:
        """Bytes that the reducers and what belongs to them keep on this rank between two steps."""
        return num_state_bytes(self.flats)

    def _weighted(self, values: Sequence[float]) -> float:
        """Mean of one value per flat gradient, weighted by the number of compressed elements."""
        sizes = [flat.compressed.numel for flat in self.flats]
        return sum(value * size for value, size in zip(values, sizes, strict=True)) / max(1, sum(sizes))

    def _sample(self, grad_N: Tensor) -> Tensor:
        """Evenly spaced absolute values of a flat gradient."""
        return grad_N[:: 1 + self.num_elements // HISTOGRAM_SAMPLE].abs()

    def _anywhere(self, bad: Tensor) -> bool:
        """Whether a condition holds on any rank; an all-reduce of 4 bytes (`control`)."""
        return bool(self.wire.sum(bad.float(), kind="control") > 0)
