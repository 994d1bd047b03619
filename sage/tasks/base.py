"""The interface of tasks: a training loss, and metrics computed from sums over the test set.

Evaluation accumulates float64 sums batch by batch. So one all-reduce of one small vector gives every metric
over all samples, even if the ranks have unequal shares.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sage.data.dataset import Batch


class Task:
    """The base class of all tasks.

    Args:
        facts: The facts of the data set, such as `num_classes`.
    """

    metric: ClassVar[str]
    """The headline metric."""

    better: ClassVar[dict[str, str]]
    """For each metric, whether `max` or `min` is better."""

    sum_names: ClassVar[tuple[str, ...]]
    """The name of each element of the sums."""

    continues: bool = False
    """Whether each training batch continues the previous one, so that a batch cannot be split."""

    needs: ClassVar[tuple[str, ...]] = ()
    """The facts that the data set must provide."""

    def __init__(self, facts: Mapping[str, float]) -> None:
        if missing := [name for name in self.needs if name not in facts]:
            raise ValueError(
                f"the task {type(self).__name__} needs {', '.join(missing)}, which the data set does not "
                f"give; its facts are: {', '.join(facts) or 'none'}"
            )
        self.facts = facts

    def begin_epoch(self) -> None:
        """Clear the state from the training batches of the last epoch."""

    def begin_evaluation(self) -> None:
        """Clear the state from the test batches of the last evaluation."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute the mean loss of a training batch."""
        raise NotImplementedError

    def sums(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute the evaluation sums of a test batch, in float64 and in the order of `sum_names`."""
        raise NotImplementedError

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Compute the metrics from the sums over all batches of all ranks."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the state that this rank needs to resume in the middle of an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""

    def _named(self, sums: Tensor) -> dict[str, float]:
        return dict(zip(self.sum_names, sums.tolist(), strict=True))


def stack(*sums: Tensor | int) -> Tensor:
    """Stack the evaluation sums of one batch into a float64 vector, on the device of its tensors."""
    device = next(s.device for s in sums if isinstance(s, Tensor))
    return torch.stack([torch.as_tensor(s, dtype=torch.float64, device=device) for s in sums])
