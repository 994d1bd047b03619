"""The squares of what each sample, or each part of a batch, adds to the gradient.

With a batch's mean gradient Σ_z g_z/B, the sum Σ_z (g_z/B)² is what methods that weigh an element's mean
against its variance ask for (`Reducer.needs_squares`; Tsuzuku et al., 2018). Parts of the batch are cheap, a
backward each; samples one by one go through torch.func, a few at once.
"""
# N = elements of the flat gradient, Z = samples taken at once

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from sage.clock import phase
from sage.feed.data import Batch
from sage.mount import WholeModel
from sage.task import LanguageModel, Task

AT_ONCE = 8
"""Samples whose gradients are held at once: this many times the model."""


class Squares:
    """Takes the place of backward for a reducer that asks for squares.

    The squares are those of the loss's gradient: weight decay and momentum before the reduction are not in
    them; clipping is, where the loop says so.

    Args:
        model, task: Whose loss.
        mount: Whose gradient is added to; its reducer says into how many parts a batch goes.

    Raises:
        ValueError: where the task's batches, or the model, cannot be split as asked.
    """

    def __init__(self, model: nn.Module, task: Task, mount: WholeModel) -> None:
        self._model, self._task, self._mount = model, task, mount
        self._parts = mount.feedback.reducer.sub_batches
        self._square_N = torch.zeros_like(mount.grad_N)
        if self._parts != 1 and isinstance(task, LanguageModel):
            raise ValueError(
                "the squares of a language model's batches, which continue each other, come from whole batches: "
                "take --squares split --sub-batches 1, and as many samples as --accumulate says"
            )
        norms = [name for name, module in model.named_modules() if _mixes_samples(module)]
        if self._parts is None and norms:
            raise ValueError(
                f"--squares per-sample: {norms[0]} takes its statistics from the whole batch, so no sample has "
                "a gradient of its own; take --squares split, or another normalisation"
            )

    def backward(self, batch: Batch, accumulate: int) -> Tensor:
        """Add a batch's gradient over `accumulate` to the mount's, and keep the squares; its loss over that."""
        if self._parts is None:
            return self._per_sample(batch, accumulate)
        num = len(batch[0])
        loss = self._square_N.new_zeros(())
        for part in zip(*(x.tensor_split(min(num, self._parts)) for x in batch), strict=True):
            before_N = self._mount.grad_N.clone()
            self._mount.zero_()
            with phase("forward"):
                share = self._task.loss(self._model, part) / (accumulate * num / len(part[0]))
            with phase("backward"):
                share.backward()
            self._square_N.addcmul_(self._mount.grad_N, self._mount.grad_N)
            self._mount.grad_N += before_N
            loss += share.detach()
        return loss

    def _per_sample(self, batch: Batch, accumulate: int) -> Tensor:
        one = _OfOne(self._model, self._task)
        values = {name: p.detach() for name, p in one.named_parameters() if p.requires_grad}
        each = vmap(
            grad_and_value(lambda values, *sample: functional_call(one, values, sample)),
            in_dims=(None, *(0 for _ in batch)),
            randomness="different",
        )
        loss = self._square_N.new_zeros(())
        places = {id(p): span for p, span in zip(*self._places(), strict=True)}
        for some in zip(*(x.split(AT_ONCE) for x in batch), strict=True):
            with phase("backward"):
                grads, losses_Z = each(values, *some)
            for name, parameter in one.named_parameters():
                if name in grads:
                    span = places[id(parameter)]
                    share_Z = grads[name].flatten(1) / (accumulate * len(batch[0]))
                    self._mount.grad_N[span.start : span.stop] += share_Z.sum(0)
                    self._square_N[span.start : span.stop] += share_Z.square().sum(0)
            loss += losses_Z.sum() / (accumulate * len(batch[0]))
        return loss
