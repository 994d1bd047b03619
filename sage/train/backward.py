"""Forward and backward passes of one step on one rank."""
# N = elements of the flat gradient

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
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


class Pass:
    """The forward and the backward pass of one micro-batch.

    Args:
        config: `amp` is read from it.
        loss_of: Computes the loss of a micro-batch.
        device: The device of the model.
        loss_scale: The loss is multiplied by it before backward.
    """

    def __init__(
        self,
        config: Config,
        loss_of: Callable[[Batch], Tensor],
        device: torch.device,
        loss_scale: LossScale,
    ) -> None:
        self._amp, self._loss_of, self._device, self._loss_scale = config.amp, loss_of, device, loss_scale

    def __call__(self, batch: Batch, divisor: float) -> Tensor:
        """Add the gradient of loss_scale * loss / divisor to each `.grad`; return loss / divisor.

        The batch must be on the model's device.
        """
        with phase("forward"), self._autocast():
            loss = self._loss_of(batch) / divisor
        with phase("backward"):
            (loss * float(self._loss_scale.scale)).backward()
        return loss.detach()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._amp == "none":
            return nullcontext()
        dtype = torch.bfloat16 if self._amp == "bf16" else torch.float16
        return torch.autocast(self._device.type, dtype=dtype)


class LossModule(nn.Module):
    """The loss of a micro-batch as a module, which DistributedDataParallel and FSDP2 can wrap."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Batch) -> Tensor:
        return self.task.loss(self.model, batch)


class Backward:
    """Runs the passes of a step's micro-batches; the gradient goes into the mount's flat vector.

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
        self.config, self.mount, self.loss_scale, self.squares = config, mount, loss_scale, squares
        self.device = next(model.parameters()).device
        self._pass = Pass(config, partial(task.loss, model), self.device, loss_scale)

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
