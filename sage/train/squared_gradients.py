"""Computes sums of squared per-sample (or per-sub-batch) gradients.

The mean gradient of a batch is Σ_z g_z/B. Methods that compare the mean of an element with its variance need
the sum Σ_z (g_z/B)² (`Reducer.needs_squares`; Tsuzuku et al., 2018). Each sub-batch needs one backward pass;
per-sample gradients are computed with torch.func, `AT_ONCE` samples at a time.
"""
# N = elements of the flat gradient, Z = samples processed at once

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from sage.data.dataset import Batch
from sage.mount import WholeModel
from sage.tasks import Task
from sage.timing import phase

AT_ONCE = 8
"""Number of samples processed at once; their gradients take this many times the memory of the model."""


class Squares:
    """Runs backward and accumulates squared gradients, for reducers with `needs_squares`.

    The squares are of the gradient of the loss, without weight decay and momentum before the reduction.

    Args:
        model, task: They compute the loss.
        mount: Its `grad_N` receives the gradient; its reducer sets the number of sub-batches.
        amp: Whether mixed precision is used.

    Raises:
        ValueError: Batches of this task or model cannot be split as the reducer requires.
    """

    def __init__(self, model: nn.Module, task: Task, mount: WholeModel, *, amp: bool = False) -> None:
        self._mount = mount
        self._parts = mount.feedback.reducer.sub_batches
        self._one = _OfOne(model, task)
        self._square_N = torch.zeros_like(mount.grad_N)
        self._spans = dict(zip(map(id, mount.parameters_in_order), mount.layout.spans, strict=True))
        if self._parts != 1 and task.continues:
            raise ValueError(
                "a language model's batches continue each other and cannot be split: use --squares split "
                "--sub-batches 1, where each batch of --accumulate counts as one sample"
            )
        norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        if self._parts is None and (norms or amp):
            reason = f"the statistics of {norms[0]} are those of the whole batch" if norms else "--amp is set"
            raise ValueError(f"squares are computed per sample, but {reason}: use --squares split")

    def zero_(self) -> None:
        """Set the squares to zero, before the first batch of a step."""
        self._square_N.zero_()

    def backward(self, batch: Batch, divisor: float, backward: Callable[[Batch, float], Tensor]) -> Tensor:
        """Add the gradient of loss / divisor to the mount's, add its squares, and return loss / divisor.

        Args:
            backward: Does the same for a whole batch at once, without the squares.
        """
        if self._parts is None:
            return self._per_sample(batch, divisor)
        num, grad_N = len(batch[0]), self._mount.grad_N
        loss = grad_N.new_zeros(())
        for part in zip(*(x.tensor_split(min(num, self._parts)) for x in batch), strict=True):
            before_N = grad_N.clone()
            grad_N.zero_()
            loss += backward(part, divisor * num / len(part[0]))
            self._square_N.addcmul_(grad_N, grad_N)
            grad_N += before_N
        return loss

    def _per_sample(self, batch: Batch, divisor: float) -> Tensor:
        def loss_of(values: dict[str, Tensor], *sample: Tensor) -> Tensor:
            loss: Tensor = functional_call(self._one, values, sample)
            return loss

        share = 1 / (divisor * len(batch[0]))
        trained = {name: p for name, p in self._one.named_parameters() if id(p) in self._spans}
        values = {name: p.detach() for name, p in trained.items()}
        per_sample = vmap(
            grad_and_value(loss_of), in_dims=(None, *(0 for _ in batch)), randomness="different"
        )
        loss = self._square_N.new_zeros(())
        for some in zip(*(x.split(AT_ONCE) for x in batch), strict=True):
            with phase("backward"):
                grads, loss_Z = per_sample(values, *some)
            for name, parameter in trained.items():
                span, share_Z = self._spans[id(parameter)], grads[name].flatten(1) * share
                self._mount.grad_N[span.start : span.stop] += share_Z.sum(0)
                self._square_N[span.start : span.stop] += share_Z.square().sum(0)
            loss += loss_Z.sum() * share
        return loss

    def rescale(self, factor: Tensor) -> None:
        """Scale the squares after the gradient was multiplied by `factor`.

        A factor of NaN, from 0/0 for a zero gradient, counts as 1.
        """
        self._square_N.mul_(factor.to(self._square_N).nan_to_num(1.0) ** 2)

    def pass_to_reducer(self) -> None:
        """Pass the squares to the reducer."""
        self._mount.feedback.reducer.observe(self._square_N[: self._mount.grad_C.numel()])


class _OfOne(nn.Module):
    """A module that computes the loss of a single sample."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, *sample: Tensor) -> Tensor:
        return self.task.loss(self.model, tuple(x.unsqueeze(0) for x in sample))
