"""The contract of tasks: a loss to train with, and metrics from sums over the test set.

Evaluation adds up float64 sums batch by batch, so that one all-reduce of one small vector gives every metric
over all samples, however unevenly the ranks share them.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sage.data.dataset import Batch


class Task:
    """What is common to all tasks.

    Args:
        facts: The data set's, such as `num_classes`.
    """

    metric: ClassVar[str]
    """The headline metric."""

    better: ClassVar[dict[str, str]]
    """For every metric, whether `max` or `min` is better."""

    sum_names: ClassVar[tuple[str, ...]]
    """What each element of the sums counts."""

    continues: ClassVar[bool] = False
    """Whether each training batch continues the one before, so that none can be taken in parts."""

    needs: ClassVar[tuple[str, ...]] = ()
    """The facts that the data set must give."""

    def __init__(self, facts: dict[str, int]) -> None:
        if missing := [name for name in self.needs if name not in facts]:
            raise ValueError(
                f"the task {type(self).__name__} needs {', '.join(missing)}, which the data set does not "
                f"give; its facts are: {', '.join(facts) or 'none'}"
            )
        self.facts = facts

    def begin_epoch(self) -> None:
        """Forget what the last epoch's training batches left."""

    def begin_evaluation(self) -> None:
        """Forget what the last evaluation's test batches left."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a training batch."""
        raise NotImplementedError

    def sums(self, model: nn.Module, batch: Batch) -> Tensor:
        """The evaluation sums of a test batch, in float64 and in the order of `sum_names`."""
        raise NotImplementedError

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """The metrics, from sums added up over all batches of all ranks."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What this rank must keep to go on in the middle of an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""

    def _named(self, sums: Tensor) -> dict[str, float]:
        return dict(zip(self.sum_names, sums.tolist(), strict=True))


def stack(*sums: Tensor | int) -> Tensor:
    """The evaluation sums of one batch: one float64 vector, on the device of its tensors."""
    device = next(s.device for s in sums if isinstance(s, Tensor))
    return torch.stack([torch.as_tensor(s, dtype=torch.float64, device=device) for s in sums])
