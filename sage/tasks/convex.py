"""Convex: L2-regularised logistic regression, and the gap between its loss and the optimum."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sage.data.dataset import Batch

from .base import Task, stack

# B = samples in the batch, F = features


class Convex(Task):
    """Logistic regression of labels -1 and 1: the gap f(w) - min f, the loss f(w), and accuracy.

    f(w) = mean of log(1 + exp(-y x.w)) + (l2/2) |w|^2 over all samples. The data set gives l2 and the minimum
    as the facts `l2` and `optimum`. The model is called as `model(x)` and returns one logit for each sample;
    all its parameters are regularised. It computes in float32, so that a gap below about 1e-7 is rounding.
    """

    metric = "gap"
    better = {"gap": "min", "loss": "min", "accuracy": "max"}
    sum_names = ("loss", "correct", "count")
    needs = ("l2", "optimum")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x_BF, y_B = batch
        return functional.softplus(-y_B * model(x_BF)).mean() + self._penalty(model)

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: Batch) -> Tensor:
        x_BF, y_B = batch
        logits_B = model(x_BF).double()
        loss = functional.softplus(-y_B * logits_B).sum() + len(y_B) * self._penalty(model).double()
        return stack(loss, (logits_B * y_B > 0).sum(), len(y_B))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        total = self._named(sums)
        loss = total["loss"] / total["count"]
        return {
            "gap": loss - self.facts["optimum"],
            "loss": loss,
            "accuracy": total["correct"] / total["count"],
        }

    def _penalty(self, model: nn.Module) -> Tensor:
        # After the forward pass: FSDP2 has gathered the parameters by then.
        return self.facts["l2"] / 2 * sum((p.square().sum() for p in model.parameters()), torch.zeros(()))


TASK = Convex
