"""Tensors laid one after another in a flat vector, and a reducer over it: what every mount is made of.

Small tensors lie at the end of the flat vector: the reducer sees its head, and its tail is all-reduced dense.
A complex tensor lies in it as pairs of reals, in the shape (*shape, 2).
"""
# N = elements of the flat gradient, of which C at the head are compressed

from collections.abc import Container, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sage.comm.wire import Wire
from sage.reduction.error_feedback import ErrorFeedback, MemoryOptions
from sage.reduction.layout import Layout
from sage.reduction.reducer import Memory, Reduced, Reducer


class Flat(nn.Module):
    """One flat gradient, and a reducer with its memory over the head of it.

    Args:
        shapes: Name and shape of each tensor, in the same order on every rank.
        reducer: The method, not yet bound.
        dtype, device: Of the gradient.
        memory: Error feedback; by default what the reducer asks for.
        memory_options: Its β, γ and so on, as of `sage.reduction.error_feedback.ErrorFeedback`.
        grouping: The unit over which the reducer decides; by default what it asks for.
        min_compress: Tensors of fewer elements go dense, unless the reducer takes them too.
        always: Names of those that are compressed however small.
    """

    def __init__(
        self,
        shapes: Iterable[tuple[str, Sequence[int]]],
        reducer: Reducer,
        *,
        dtype: torch.dtype,
        device: torch.device,
        memory: Memory | None = None,
        memory_options: MemoryOptions | None = None,
        grouping: str | None = None,
        min_compress: int = 0,
        always: Container[str] = (),
    ) -> None:
        super().__init__()
        _check_names(memory_options or {})
        least = min_compress if reducer.spares_small else 0
        sized = [(name, torch.Size(shape)) for name, shape in shapes]
        large = [(name, shape) for name, shape in sized if shape.numel() >= least or name in always]
        small = [(name, shape) for name, shape in sized if not (shape.numel() >= least or name in always)]
        self.layout = Layout.of(large + small)
        self.compressed = Layout.of(large, grouping or reducer.grouping)
        self.feedback = ErrorFeedback(reducer, self.compressed, memory=memory, **(memory_options or {}))
        self.density = 1.0
        self._kept: dict[str, Tensor] = {}
        self._allocate(dtype, device)

    def _allocate(self, dtype: torch.dtype, device: torch.device) -> None:
        self.feedback.to(device)
        self.grad_N = torch.zeros(self.layout.numel, dtype=dtype, device=device)
        self.grad_C = self.grad_N[: self.compressed.numel]
        self.dense = self.grad_N[self.compressed.numel :]

    def fit(self, gradient: Tensor) -> None:
        """Take on the gradient's dtype and device, which mixed precision may have changed."""
        if (gradient.dtype, gradient.device) != (self.grad_N.dtype, self.grad_N.device):
            self._allocate(gradient.dtype, gradient.device)

    def views(self) -> dict[str, Tensor]:
        """Each tensor's place in the flat gradient, in its own shape, by name."""
        spans = self.layout.spans
        return {span.name: self.grad_N[span.start : span.stop].view(span.shape) for span in spans}

    def forward(self, wire: Wire, lr: float | None = None) -> Reduced:
        """Replace the gradient by the mean over ranks of what was sent.

        Args:
            wire: To the other ranks.
            lr: The learning rate of this step, for a memory that asks for it.
        """
        if lr is not None:
            self.feedback.begin_step(lr)
        if self.compressed.numel:
            reduced: Reduced = self.feedback(self.grad_C, wire)
        else:  # all tensors are empty or small
            reduced = Reduced(self.grad_C, density=0.0)
        if reduced.mean_N is not self.grad_C:
            self.grad_C.copy_(reduced.mean_N)
        if self.dense.numel():
            wire.mean(self.dense)
        self.density = reduced.density
        return reduced

    def save(self) -> dict[str, Tensor]:
        """A copy of the state of the reducer and its memory, valid until the next one is made."""
        for name, x in self.feedback.state_dict().items():
            kept = self._kept.get(name)
            if kept is None or (kept.shape, kept.dtype, kept.device) != (x.shape, x.dtype, x.device):
                self._kept[name] = x.clone()
            else:
                kept.copy_(x)
        return self._kept

    def put_back(self, saved: Mapping[str, Tensor]) -> None:
        """Return to the state of a copy."""
        self.feedback.load_state_dict(saved)


def _check_names(memory_options: MemoryOptions) -> None:
    allowed = MemoryOptions.__annotations__
    if unknown := [name for name in memory_options if name not in allowed]:
        raise ValueError(f"memory_options has {', '.join(unknown)}; allowed are {', '.join(allowed)}")
