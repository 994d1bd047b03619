"""Where a reducer meets a model: the whole model's gradient, reduced after backward.

Small tensors lie at the end of the flat vector, so that its head is what the reducer sees and its tail goes
dense.
"""
# N = elements of the flat gradient, of which C at the head are compressed

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sage.comm.wire import Wire
from sage.layout import Layout
from sage.reduce import ErrorFeedback, Memory, Reduced, Reducer


class WholeModel(nn.Module):
    """All gradients of a model as views of one flat vector, and a reducer over it.

    Backward accumulates straight into the vector, so nothing is copied before or after the reduction. Frozen
    parameters have no place in it; unused ones contribute zeros.

    Args:
        model: Its parameters' `.grad` are replaced; use `zero_()` here, never `zero_grad(set_to_none=True)`.
        reducer: The method, not yet bound.
        memory: Error feedback; by default what the reducer asks for.
        memory_options: Of `ErrorFeedback`, such as `beta`.
        grouping: The unit over which the reducer decides; by default what it asks for.
        min_compress: Tensors of fewer elements go dense, unless the reducer takes them too.

    Raises:
        ValueError: where no parameter requires a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        reducer: Reducer,
        *,
        memory: Memory | None = None,
        memory_options: Mapping[str, Any] | None = None,
        grouping: str | None = None,
        min_compress: int = 0,
    ) -> None:
        super().__init__()
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError(
                "the model has no parameter that requires a gradient: there is nothing to reduce"
            )
        least = min_compress if reducer.spares_small else 0
        large = [(name, p) for name, p in named if p.numel() >= least]
        small = [(name, p) for name, p in named if p.numel() < least]
        self.parameters_in_order = [p for _, p in large + small]
        self.layout = Layout.of((name, p.shape) for name, p in large + small)
        compressed = Layout.of(((name, p.shape) for name, p in large), grouping or reducer.grouping)
        first = self.parameters_in_order[0]
        self.grad_N = torch.zeros(self.layout.numel, dtype=first.dtype, device=first.device)
        self.grad_C, self.dense = self.grad_N[: compressed.numel], self.grad_N[compressed.numel :]
        for parameter, span in zip(self.parameters_in_order, self.layout.spans, strict=True):
            parameter.grad = self.grad_N[span.start : span.stop].view(span.shape)
        self.feedback = ErrorFeedback(reducer, compressed, memory=memory, **(memory_options or {}))
        self.feedback.to(first.device)

    def zero_(self) -> None:
        """Forget the gradient, before the next backward."""
        self.grad_N.zero_()

    def forward(self, wire: Wire, lr: float | None = None) -> Reduced:
        """Replace every `.grad` by the mean over ranks of what was sent.

        Args:
            wire: To the other ranks.
            lr: The learning rate of this step, for a memory that asks for it.
        """
        if lr is not None:
            self.feedback.begin_step(lr)
        reduced = self.feedback(self.grad_C, wire)
        if reduced.mean_N is not self.grad_C:
            self.grad_C.copy_(reduced.mean_N)
        if self.dense.numel():
            wire.mean(self.dense)
        return reduced
