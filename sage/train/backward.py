"""One rank's forward and backward passes of a step, which leave their gradient in the mount's flat vector."""
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
    """Forward and backward of a step's micro-batches.

    Args:
        config: Its `amp` and `accumulate`.
        model, task: What computes the loss.
        mount: Where the gradient goes.
        loss_scale: What the loss is multiplied by before its backward; the gradient is divided by it.
        squares: Observes the samples' gradients, where the reducer asks for it.
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
        """Replace the mount's `grad_N` by the gradient of the micro-batches' mean loss, which is returned."""
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
        """Add the gradient of a batch's loss over `divisor`, times the loss scale; that loss without it."""
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
