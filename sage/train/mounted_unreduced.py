"""The mount of optimisers that communicate themselves (`sage.optim`): no gradient is reduced."""

from torch import Tensor

from sage.data.dataset import Batch
from sage.train.mounted import StepGradient
from sage.train.mounted_whole import MountedWhole
from sage.train.optim import joint_norm


class MountedUnreduced(MountedWhole):
    """Backward accumulates into one flat vector, which remains this rank's own gradient."""

    def compute(self, batches: list[Batch], lr: float, *, sampled: bool) -> StepGradient:
        loss = self.backward(batches)
        if self.may_skip and self._overflowed():
            return StepGradient(loss=loss, skipped=True)
        return StepGradient(loss=loss, skipped=False, sample=self._prepare(sampled))

    def norm(self) -> Tensor:
        """Root mean square over ranks of the norms of their gradients: not finite if any of them is not."""
        square = joint_norm(self.gradient).double().square().reshape(1)
        return self.wire.mean(square, kind="control")[0].sqrt()

    def density(self) -> float:
        """The optimiser reports the share of elements that it sends (`sage.train.step`)."""
        return 1.0
