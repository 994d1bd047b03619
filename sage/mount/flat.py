"""A flat vector of tensors with a reducer over it: the basis of every mount.

Small tensors are at the end of the flat vector: the reducer handles the head, and the tail is all-reduced
dense. A complex tensor is stored as pairs of reals, in the shape (*shape, 2).

On two levels (`sage.comm.levels`), the vector is reduced within each node first, and each rank's reducer and
error feedback belong to its part of the vector, which is a flat vector of its own (`Flat.own`).
"""
# N = elements of the flat gradient, of which C at the head are compressed

import time
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sage.comm.levels import Levels
from sage.comm.wire import Wire
from sage.mount.origins import divide
from sage.mount.parts import cut, needs_whole_tensors, origins_of, shapes_of
from sage.mount.reduction_seconds import ReductionSeconds, seconds_since
from sage.reduction.error_feedback import ErrorFeedback, MemoryOptions
from sage.reduction.layout import MAX_ELEMENTS, Layout, Origin
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
        levels: Reduce on two levels, over these wires; None: directly between all ranks.

    Raises:
        ValueError: if an option is out of range or unknown, or the reducer does not support two levels.
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
        levels: Levels | None = None,
    ) -> None:
        super().__init__()
        _check_names(memory_options or {})
        sized = [(name, torch.Size(shape)) for name, shape in shapes]
        large, small = divide(sized, reducer, min_compress, always)
        self.layout = Layout.of([*large, *small])
        self.compressed = Layout.of(large, grouping or reducer.grouping, origins=origins)
        self.levels, self._lengths = levels, [self.layout.numel]
        self._part: Flat | None = None
        if levels is None:
            self.feedback = ErrorFeedback(reducer, self.compressed, memory=memory, **(memory_options or {}))
        else:
            self._part = self._own_part(
                levels, reducer, grouping, dtype, device, memory=memory, memory_options=memory_options
            )
            self.feedback = self._part.feedback
        self.density = 1.0
        self.seconds: ReductionSeconds | None = None
        """Times of the last reduction; None before it, and on a GPU, where the host does not wait for it."""
        self._kept: dict[str, Tensor] = {}
        self._allocate(dtype, device)

    def _own_part(
        self,
        levels: Levels,
        reducer: Reducer,
        grouping: str | None,
        dtype: torch.dtype,
        device: torch.device,
        **options: Any,
    ) -> "Flat":
        """Cut the vector into one part for each rank of the node; return this rank's."""
        if reducer.needs_squares:
            raise ValueError(
                f"the reducer {type(reducer).__name__.lower()} needs the squares of the samples' gradients, "
                "which are not summed within a node: use the hierarchy flat instead of node"
            )
        whole_tensors = needs_whole_tensors(reducer, grouping)
        self._lengths = cut(self.layout, levels.within.world_size, whole_tensors=whole_tensors)
        start = sum(self._lengths[: levels.within.rank])
        tensors = shapes_of(self.layout, start, start + self._lengths[levels.within.rank])
        places = origins_of(self.compressed, tensors)
        return Flat(
            [(name, shape) for name, shape, _ in tensors],
            reducer,
            dtype=dtype,
            device=device,
            grouping=grouping,
            # A piece of a tensor is compressed if the whole tensor is, whatever its own size.
            min_compress=MAX_ELEMENTS + 1,
            always=places,
            origins=places,
            **options,
        )

    @property
    def own(self) -> "Flat":
        """The flat gradient of this rank's reducer: this one, or its part of it on two levels."""
        return self._part or self

    @property
    def place(self) -> str:
        """Which part of the vector this rank's reducer has, such as `part 1 of 4`."""
        if self.levels is None:
            return "part 0 of 1"
        return f"part {self.levels.within.rank} of {self.levels.within.world_size}"

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
        if self.levels is not None and self._part is not None:
            return self._on_two_levels(self.levels, self._part, lr)
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

    def _on_two_levels(self, levels: Levels, part: "Flat", lr: float | None) -> Reduced:
        part.use(levels.scatter_mean(self.grad_N, self._lengths))
        reduced = part(levels.across, lr)
        self.seconds = part.seconds
        self.grad_N.split(self._lengths)[levels.within.rank].copy_(part.grad_N)
        levels.gather(self.grad_N, self._lengths)
        # The parts may have sent different shares of their elements.
        sent = levels.total(reduced.density * part.compressed.numel, self.grad_N.device)
        self.density = sent / max(1, self.compressed.numel)
        return Reduced(self.grad_C, density=self.density, union_M=reduced.union_M)

    def begin_epoch(self, epoch: int, lr: float, wire: Wire) -> None:
        """Notify the reducer that an epoch begins; `wire` is the communicator to the other ranks."""
        across = wire if self.levels is None else self.levels.across
        self.feedback.reducer.begin_epoch(epoch, lr, across)

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
