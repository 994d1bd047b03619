"""What a workload learns and how well it has learned it: a loss, and metrics from sums over the test set.

Evaluation adds up float64 sums batch by batch, so that one all-reduce of one small vector gives every metric
over all samples, however unevenly the ranks share them.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from sage.feed.data import Batch

# B = samples in the batch, K = classes, T = time steps, V = words of the vocabulary,
# U = users in the batch, C = candidate items of each, the held-out one first


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


class Classify(Task):
    """Tell which class each image is of: cross entropy, and top-1 and top-5 accuracy.

    Top-5 is left out where there are no more than five classes.
    """

    metric = "accuracy"
    better = {"accuracy": "max", "top5": "max", "loss": "min"}
    sum_names = ("correct", "correct5", "loss", "count")
    needs = ("num_classes",)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x_BCHW, y_B = batch
        return functional.cross_entropy(model(x_BCHW), y_B)

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: Batch) -> Tensor:
        x_BCHW, y_B = batch
        logits_BK = model(x_BCHW).float()
        best_B5 = logits_BK.topk(min(5, logits_BK.shape[1])).indices
        right_B5 = best_B5 == y_B[:, None]
        loss = functional.cross_entropy(logits_BK, y_B, reduction="none").double().sum()
        return _stack(right_B5[:, 0].sum(), right_B5.sum(), loss, len(y_B))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        total = self._named(sums)
        metrics = {"accuracy": total["correct"] / total["count"]}
        if self.facts["num_classes"] > 5:
            metrics["top5"] = total["correct5"] / total["count"]
        return metrics | {"loss": total["loss"] / total["count"]}


class LanguageModel(Task):
    """Tell each next word of a text: cross entropy, and perplexity, exp(mean loss of a word).

    Batches continue each other, so the model's memory is carried from one to the next, but no gradient is.
    Evaluation has a memory of its own.
    """

    metric = "perplexity"
    better = {"perplexity": "min", "loss": "min"}
    sum_names = ("loss", "count")
    continues = True

    def __init__(self, facts: dict[str, int]) -> None:
        super().__init__(facts)
        self.hidden: Any = None
        self.evaluation_hidden: Any = None

    def begin_epoch(self) -> None:
        self.hidden = None

    def begin_evaluation(self) -> None:
        self.evaluation_hidden = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens_BT, targets_BT = batch
        logits_BTV, hidden = model(tokens_BT, _detached(self.hidden, tokens_BT.device))
        self.hidden = _detached(hidden, tokens_BT.device)
        return functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens_BT, targets_BT = batch
        logits_BTV, self.evaluation_hidden = model(tokens_BT, self.evaluation_hidden)
        logits_BTV = logits_BTV.float()
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none")
        return _stack(loss.double().sum(), targets_BT.numel())

    def metrics(self, sums: Tensor) -> dict[str, float]:
        total = self._named(sums)
        loss = total["loss"] / total["count"]
        # math.exp raises where a float64 is full; a diverged model's perplexity is simply infinite.
        perplexity = math.inf if loss > 700 else math.exp(loss)
        return {"perplexity": perplexity, "loss": loss}

    def state_dict(self) -> dict[str, Any]:
        return {"hidden": self.hidden}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hidden = state["hidden"]


class Recommend(Task):
    """Rank the item a user did choose among a hundred or so that were drawn: hit rate and NDCG at 10.

    He et al. 2017 (https://arxiv.org/abs/1708.05031, section 4.1): of the held-out item's rank r, counted
    from 0, the hit rate is the mean of [r < 10] and NDCG the mean of [r < 10] / log2(r + 2). A tie counts
    against the model: every candidate that does not score strictly less stands before the held-out item, so
    that a model that scores all alike, or NaN, hits nothing. Masked duplicates are nobody's rivals.
    """

    metric = "hit_rate"
    better = {"hit_rate": "max", "ndcg": "max"}
    sum_names = ("hits", "ndcg", "count")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        user_B, item_B, label_B = batch
        return functional.binary_cross_entropy_with_logits(model(user_B, item_B), label_B)

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: Batch) -> Tensor:
        user_U, items_UC, duplicate_UC = batch
        user_UC = user_U[:, None].expand_as(items_UC)
        logits_UC = model(user_UC.flatten(), items_UC.flatten()).view(items_UC.shape)
        before_UC = ~(logits_UC < logits_UC[:, :1]) & ~duplicate_UC
        rank_U = before_UC[:, 1:].sum(1)
        hit_U = rank_U < 10
        ndcg_U = hit_U / (rank_U.double() + 2).log2()
        return _stack(hit_U.sum(), ndcg_U.sum(), len(user_U))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        total = self._named(sums)
        return {"hit_rate": total["hits"] / total["count"], "ndcg": total["ndcg"] / total["count"]}


def _stack(*sums: Tensor | int) -> Tensor:
    device = next(s.device for s in sums if isinstance(s, Tensor))
    return torch.stack([torch.as_tensor(s, dtype=torch.float64, device=device) for s in sums])


def _detached(hidden: Any, device: torch.device) -> Any:
    """Cut a model's memory, a tensor or a tuple of such, off its graph; one from a checkpoint also moves."""
    if isinstance(hidden, Tensor):
        return hidden.detach().to(device)
    return hidden and tuple(_detached(part, device) for part in hidden)
