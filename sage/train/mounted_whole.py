"""`--mount whole`: the whole gradient is reduced after backward, as by `sage.reduce_model`."""
# N = elements of the flat gradient

from typing import Any

import torch
from torch import Tensor

from sage.config import EXCHANGING
from sage.data.dataset import Batch
from sage.mount import WholeModel
from sage.mount.reduction_seconds import fields_of_sum
from sage.train.backward import Backward
from sage.train.levels import levels_of, with_part, without_part
from sage.train.mounted import Mounted, Parts, StepGradient
from sage.train.optim import clip_
from sage.train.schedules import before_reduction, memory_options
from sage.train.squared_gradients import Squares


class MountedWhole(Mounted):
    """Backward accumulates into one flat vector, which is reduced once backward has ended."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        config, model, reducer = parts.config, parts.model, parts.reducer
        self.whole = WholeModel(
            model,
            reducer,
            memory=config.memory,
            memory_options=memory_options(config),
            grouping=config.grouping,
            min_compress=config.min_compress,
            levels=levels_of(config, self.wire, self.device),
        )
        self.flats = [self.whole]
        self.before = before_reduction(config, self.whole.parameters_in_order)
        self.squares = (
            Squares(model, parts.task, self.whole, amp=config.amp != "none")
            if reducer.needs_squares
            else None
        )
        self.backward = Backward(config, model, parts.task, self.whole, parts.loss_scale, self.squares)
        self._exposed = 0.0

    def compute(self, batches: list[Batch], lr: float, *, sampled: bool) -> StepGradient:
        loss = self.backward(batches)
        self._reduced = []
        if self.may_skip and self._overflowed():
            return StepGradient(loss=loss, skipped=True)
        sample = self._prepare(sampled)  # no residual, controller or momentum uses a skipped gradient
        self._reduce(lr)
        return StepGradient(loss=loss, skipped=False, sample=sample)

    def _reduce(self, lr: float) -> None:
        """Replace the flat gradient by its mean over ranks."""
        waited = self.wire.ledger.seconds
        self._reduced = [self.error.reduce(self.whole, self.wire, lr)]
        self._exposed = self.wire.ledger.seconds - waited

    def _overflowed(self) -> bool:
        """Whether the gradient of any rank is not finite."""
        return self._anywhere(~self.whole.grad_N.isfinite().all())

    def _prepare(self, sampled: bool) -> Tensor | None:
        """Apply decay, momentum and clipping before the reduction; return a sample if requested."""
        config, grad_N, squares = self.config, self.whole.grad_N, self.squares
        self.before(grad_N)
        if config.clip_local is not None:
            ranks = self.wire.world_size if config.clip_local_by_world else 1
            norm = clip_([grad_N], config.clip_local, world_size=ranks)
            if squares is not None:
                squares.rescale(torch.linalg.vector_norm(grad_N) / norm)
        if squares is not None:
            squares.pass_to_reducer()
        return self._sample(grad_N) if sampled else None

    def is_finite_here(self, batches: list[Batch]) -> bool:
        self.backward(batches)
        return bool(self.whole.grad_N.isfinite().all())

    def seconds(self) -> dict[str, float]:
        """Encoding and decoding, and all collectives of the reduction, which overlap with nothing."""
        if not self._reduced:
            return {}
        fields = fields_of_sum([self.whole.seconds])
        return fields if self.whole.grad_N.is_cuda else {**fields, "exposed_seconds": self._exposed}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        feedback = with_part(self.whole.feedback.state_dict(), self.whole)
        return {"feedback": feedback, "before": self.before.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        self.whole.feedback.load_state_dict(without_part(state["feedback"], self.whole))
        self.before.load_state_dict(state["before"])


def whole_of(mount: Mounted) -> MountedWhole:
    """Return a mount that measurements need to be that of `--mount whole`.

    Raises:
        ValueError: It is another one, has local updates, or reduces on two levels.
    """
    if mount.is_local:
        raise ValueError(
            f"local_steps is {mount.config.local_steps}; this measurement is of a gradient that is reduced "
            "in every step: leave --local and --local-steps out"
        )
    if not isinstance(mount, MountedWhole):
        raise ValueError(f"mount is {mount.config.mount!r}; this measurement requires --mount whole")
    if mount.config.optimizer in EXCHANGING:
        raise ValueError(
            f"optimizer is {mount.config.optimizer!r}, which communicates itself; this measurement is of a "
            "gradient that is reduced: use another optimizer, such as adamw"
        )
    if mount.config.hierarchy != "flat":
        raise ValueError("hierarchy is 'node'; this measurement requires the hierarchy flat")
    return mount
