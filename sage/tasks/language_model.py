"""Language modelling: cross entropy of each next word, and perplexity."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sage.data.dataset import Batch

from .base import Task, stack

# B = streams in the batch, T = time steps, V = words of the vocabulary


class LanguageModel(Task):
    """Prediction of each next word of a text: cross entropy, and perplexity, exp(mean loss per word).

    Each batch continues the previous one, so the model's hidden state is passed from batch to batch, without
    gradients. Evaluation has a separate hidden state.
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
        return stack(loss.double().sum(), targets_BT.numel())

    def metrics(self, sums: Tensor) -> dict[str, float]:
        total = self._named(sums)
        loss = total["loss"] / total["count"]
        # math.exp raises OverflowError above about 709; the perplexity of a diverged model is infinite.
        perplexity = math.inf if loss > 700 else math.exp(loss)
        return {"perplexity": perplexity, "loss": loss}

    def state_dict(self) -> dict[str, Any]:
        return {"hidden": self.hidden}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hidden = state["hidden"]


def _detached(hidden: Any, device: torch.device) -> Any:
    """Detach a hidden state, a tensor or nested tuple of tensors; one from a checkpoint is also moved."""
    if isinstance(hidden, Tensor):
        return hidden.detach().to(device)
    return hidden and tuple(_detached(part, device) for part in hidden)


TASK = LanguageModel
