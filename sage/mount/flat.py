"""A flat vector of tensors with a reducer over it: the basis of every mount.

Small tensors are at the end of the flat vector: the reducer handles the head, and the tail is all-reduced
dense. A complex tensor is stored as pairs of reals, in the shape (*shape, 2).
"""
# N = elements of the flat gradient, of which C at the head are compressed

import time
from collections.abc import Container, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sage.comm.wire import Wire
from sage.mount.origins import divide
from sage.mount.reduction_seconds import ReductionSeconds, seconds_since
from sage.reduction.error_feedback import ErrorFeedback, MemoryOptions
from sage.reduction.layout import Layout, Origin
from sage.reduction.reducer import Memory, Reduced, Reducer


class Flat(nn.Module):
    """One flat gradient, with a reducer and its error feedback over its head.

    Args:
        shapes: Name and shape of each tensor, in the same order on every rank.
        reducer: The method, not yet bound.
        dtype: Dtype of the gradient.
        device: Device of the gradient.
        memory: Error feedback; by default the reducer's own.
        memory_options: Options of the error feedback (β, γ, …); see
            `sage.reduction.error_feedback.ErrorFeedback`.
        grouping: Unit of the reducer's decisions; by default the reducer's own.
        min_compress: Tensors with fewer elements are sent dense, unless the reducer handles them too.
        always: Names of tensors that are compressed even if they are small.
        origins: Where each tensor is in the vector of the whole model, by name; None: this is its vector.

    Raises:
        ValueError: if an option is out of range or unknown.
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
        origins: Mapping[str, Origin] | None = None,
    ) -> None:
        super().__init__()
        _check_names(memory_options or {})
        sized = [(name, torch.Size(shape)) for name, shape in shapes]
        large, small = divide(sized, reducer, min_compress, always)
        self.layout = Layout.of([*large, *small])
        self.compressed = Layout.of(large, grouping or reducer.grouping, origins=origins)
        self.feedback = ErrorFeedback(reducer, self.compressed, memory=memory, **(memory_options or {}))
        self.density = 1.0
        self.seconds: ReductionSeconds | None = None
        """Times of the last reduction; None before it, and on a GPU, where the host does not wait for it."""
        self._kept: dict[str, Tensor] = {}
        self._allocate(dtype, device)

    def _allocate(self, dtype: torch.dtype, device: torch.device) -> None:
        self.feedback.to(device)
        self.use(torch.zeros(self.layout.numel, dtype=dtype, device=device))

    def use(self, grad_N: Tensor) -> None:
        """Take this vector as the flat gradient, without copying it."""
        self.grad_N = grad_N
        self.grad_C = grad_N[: self.compressed.numel]
        self.dense = grad_N[self.compressed.numel :]

    def fit(self, gradient: Tensor) -> None:
        """Adopt the gradient's dtype and device, which mixed precision may have changed."""
        if (gradient.dtype, gradient.device) != (self.grad_N.dtype, self.grad_N.device):
            self._allocate(gradient.dtype, gradient.device)

    def views(self) -> dict[str, Tensor]:
        """View of each tensor in the flat gradient, in its own shape, by name."""
        spans = self.layout.spans
        return {span.name: self.grad_N[span.start : span.stop].view(span.shape) for span in spans}

    def forward(self, wire: Wire, lr: float | None = None) -> Reduced:
        """Replace the gradient by the mean over ranks of what was sent.

        Args:
            wire: Communicator to the other ranks.
            lr: Learning rate of this step, for error feedback that uses it.
        """
        if lr is not None:
            self.feedback.begin_step(lr)
        self.seconds = ReductionSeconds(0.0, 0.0)
        if self.compressed.numel:
            start, waited = time.perf_counter(), wire.ledger.seconds
            reduced: Reduced = self.feedback(self.grad_C, wire)
            self.seconds = None if self.grad_C.is_cuda else seconds_since(start, waited, wire)
        else:  # all tensors are empty or small
            reduced = Reduced(self.grad_C, density=0.0)
        if reduced.mean_N is not self.grad_C:
            self.grad_C.copy_(reduced.mean_N)
        if self.dense.numel():
            wire.mean(self.dense)
        self.density = reduced.density
        return reduced

    def save(self) -> dict[str, Tensor]:
        """Copy of the state of the reducer and its error feedback, valid until the next call."""
        for name, x in self.feedback.state_dict().items():
            copy = self._kept.get(name)
            if copy is None or (copy.shape, copy.dtype, copy.device) != (x.shape, x.dtype, x.device):
                self._kept[name] = x.clone()
            else:
                copy.copy_(x)
        return self._kept

    def put_back(self, saved: Mapping[str, Tensor]) -> None:
        """Restore a copy made by `save`."""
        self.feedback.load_state_dict(saved)


def _check_names(memory_options: MemoryOptions) -> None:
    allowed = MemoryOptions.__annotations__
    if unknown := [name for name in memory_options if name not in allowed]:
        raise ValueError(f"memory_options has {', '.join(unknown)}; allowed are {', '.join(allowed)}")
