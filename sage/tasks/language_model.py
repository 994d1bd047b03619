"""Language modelling: cross entropy of each next token, perplexity, and bits per character."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sage.data.dataset import Batch

from .base import Task, stack

# B = streams or windows in the batch, T = time steps, V = words of the vocabulary


class LanguageModel(Task):
    """Prediction of each next token of a text: cross entropy, and perplexity, exp(mean loss per token).

    If the data set has the fact `block_size`, its samples are windows of so many tokens, independent of each
    other: the model is called as `model(tokens)` and returns logits, or logits with a hidden state, which is
    dropped. Otherwise each batch continues the previous one, so the model's hidden state is passed from batch
    to batch, without gradients. Evaluation has a separate hidden state.

    If the data set has the fact `character_level`, its tokens are characters or bytes, and the loss in bits
    is a metric too: bits_per_character = loss / ln 2.
    """

    metric = "perplexity"
    better = {"perplexity": "min", "loss": "min", "bits_per_character": "min"}
    sum_names = ("loss", "count")

    def __init__(self, facts: Mapping[str, float]) -> None:
        super().__init__(facts)
        self.continues = "block_size" not in facts
        self.hidden: Any = None
        self.evaluation_hidden: Any = None

    def begin_epoch(self) -> None:
        self.hidden = None

    def begin_evaluation(self) -> None:
        self.evaluation_hidden = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens_BT, targets_BT = batch
        logits_BTV, hidden = self._predict(model, tokens_BT, _detached(self.hidden, tokens_BT.device))
        self.hidden = _detached(hidden, tokens_BT.device)
        return functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens_BT, targets_BT = batch
        logits_BTV, self.evaluation_hidden = self._predict(model, tokens_BT, self.evaluation_hidden)
        logits_BTV = logits_BTV.float()
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none")
        return stack(loss.double().sum(), targets_BT.numel())

    def metrics(self, sums: Tensor) -> dict[str, float]:
        total = self._named(sums)
        loss = total["loss"] / total["count"]
        # math.exp raises OverflowError above about 709; the perplexity of a diverged model is infinite.
        perplexity = math.inf if loss > 700 else math.exp(loss)
        metrics = {"perplexity": perplexity, "loss": loss}
        if "character_level" in self.facts:
            metrics["bits_per_character"] = loss / math.log(2)
        return metrics

    def _predict(self, model: nn.Module, tokens_BT: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        """Return the logits, and the hidden state that the next batch begins with."""
        if self.continues:
            return model(tokens_BT, hidden)
        output = model(tokens_BT)
        return (output[0] if isinstance(output, tuple) else output), None

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
