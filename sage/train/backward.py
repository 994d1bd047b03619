"""Forward and backward passes of one step on one rank; the gradient goes into the mount's flat vector."""
# N = elements of the flat gradient

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sage.config import Config
from sage.data.dataset import Batch, moved
from sage.mount import WholeModel
from sage.tasks import Task
from sage.timing import phase
from sage.train.optim import LossScale
from sage.train.squared_gradients import Squares


class Backward:
    """Runs the forward and backward passes of a step's micro-batches.

    Args:
        config: `amp` and `accumulate` are read from it.
        model, task: They compute the loss.
        mount: Its `grad_N` receives the gradient.
        loss_scale: The loss is multiplied by it before backward, and the gradient is divided by it after.
        squares: Accumulates squared gradients, if the reducer needs them; otherwise None.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        task: Task,
        mount: WholeModel,
        loss_scale: LossScale,
        squares: Squares | None,
    ) -> None:
        self.config, self.model, self.task, self.mount = config, model, task, mount
        self.loss_scale, self.squares = loss_scale, squares
        self.device = next(model.parameters()).device

    def __call__(self, batches: list[Batch]) -> Tensor:
        """Set the mount's `grad_N` to the gradient of the micro-batches' mean loss, and return that loss."""
        self.mount.zero_()
        if self.squares is not None:
            self.squares.zero_()
        loss = torch.zeros((), device=self.device)
        for batch in batches:
            here = moved(batch, self.device)
            if self.squares is None:
                loss += self._pass(here, self.config.accumulate)
            else:
                loss += self.squares.backward(here, self.config.accumulate, self._pass)
        if self.loss_scale.enabled:
            self.mount.grad_N.div_(float(self.loss_scale.scale))
            if self.squares is not None:
                self.squares.rescale(1 / self.loss_scale.scale)
        return loss

    def _pass(self, batch: Batch, divisor: float) -> Tensor:
        """Add the gradient of loss_scale * loss / divisor of a batch to `grad_N`; return loss / divisor."""
        with phase("forward"), self._autocast():
            loss = self.task.loss(self.model, batch) / divisor
        with phase("backward"):
            (loss * float(self.loss_scale.scale)).backward()
        return loss.detach()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.amp == "none":
            return nullcontext()
        dtype = torch.bfloat16 if self.config.amp == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)
