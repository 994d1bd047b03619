"""Classification: cross entropy, and top-1 and top-5 accuracy."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sage.data.dataset import Batch

from .base import Task, stack

# B = samples in the batch, K = classes


class Classify(Task):
    """Image classification: cross entropy, and top-1 and top-5 accuracy.

    Top-5 accuracy is omitted if there are five classes or fewer. In training, a network may return several
    logits, each in a pair with a factor (auxiliary classifiers); the loss is the weighted sum of all losses.
    """

    metric = "accuracy"
    better = {"accuracy": "max", "top5": "max", "loss": "min"}
    sum_names = ("correct", "correct5", "loss", "count")
    needs = ("num_classes",)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x_BCHW, y_B = batch
        returned = model(x_BCHW)
        if isinstance(returned, Tensor):
            return functional.cross_entropy(returned, y_B)
        losses = [factor * functional.cross_entropy(logits_BK, y_B) for factor, logits_BK in returned]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: Batch) -> Tensor:
        x_BCHW, y_B = batch
        logits_BK = model(x_BCHW).float()
        best_B5 = logits_BK.topk(min(5, logits_BK.shape[1])).indices
        right_B5 = best_B5 == y_B[:, None]
        loss = functional.cross_entropy(logits_BK, y_B, reduction="none").double().sum()
        return stack(right_B5[:, 0].sum(), right_B5.sum(), loss, len(y_B))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        total = self._named(sums)
        metrics = {"accuracy": total["correct"] / total["count"]}
        if self.facts["num_classes"] > 5:
            metrics["top5"] = total["correct5"] / total["count"]
        return metrics | {"loss": total["loss"] / total["count"]}


TASK = Classify
