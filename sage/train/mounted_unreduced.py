"""The mount of optimisers that communicate themselves (`sage.optim`): no gradient is reduced."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from sage.comm.replicas import Replicas
from sage.data.dataset import Batch
from sage.mount.memory_use import num_state_bytes
from sage.optim import ZeroOneAdam
from sage.optim.base import ReducingOptimizer
from sage.train.mounted import StepGradient
from sage.train.mounted_whole import MountedWhole
from sage.train.optim import joint_norm


class MountedUnreduced(MountedWhole):
    """Backward accumulates into one flat vector, which remains this rank's own gradient."""

    optimizer: ReducingOptimizer | None = None
    """The optimiser of the run, once it has been created."""

    def compute(self, batches: list[Batch], lr: float, *, sampled: bool) -> StepGradient:
        loss = self.backward(batches)
        if self.may_skip and self._overflowed():
            return StepGradient(loss=loss, skipped=True)
        return StepGradient(loss=loss, skipped=False, sample=self._prepare(sampled))

    def norm(self) -> Tensor:
        """Root mean square over ranks of the norms of their gradients: not finite if any of them is not."""
        square = joint_norm(self.gradient).double().square().reshape(1)
        return self.wire.mean(square, kind="control")[0].sqrt()

    def state_bytes(self) -> int:
        return num_state_bytes((), () if self.optimizer is None else self.optimizer.own.values())

    def density(self) -> float:
        """The optimiser reports the share of elements that it sends (`sage.train.step`)."""
        return 1.0

    # Between two synchronisations of 0/1 Adam, each rank has parameters of its own.

    def common_model(self) -> AbstractContextManager[None]:
        optimizer = self.optimizer
        return optimizer.common_parameters() if isinstance(optimizer, ZeroOneAdam) else nullcontext()

    def gathered(self, shared: dict[str, Any], trained: Sequence[Tensor]) -> dict[str, Any]:
        if not isinstance(self.optimizer, ZeroOneAdam):
            return super().gathered(shared, trained)
        with self.common_model():
            model = {name: x.clone() for name, x in shared["model"].items()}
        return {**super().gathered(shared, trained), "model": model}

    def replicas(self) -> Replicas:
        optimizer = self.optimizer
        if not isinstance(optimizer, ZeroOneAdam):
            return super().replicas()
        names = {id(p): name for name, p in self.trained.named_parameters()}
        common = zip(optimizer.parameters, optimizer.common, strict=True)
        return Replicas(self.wire, [(names[id(p)], x) for p, x in common])
