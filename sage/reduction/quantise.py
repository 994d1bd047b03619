"""Quantisers: reducers that send every element in few bits."""
# N = elements of the flat vector or of a sparsifier's selection from it, G = groups, W = payloads

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypedDict

import torch
from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.reducer import Memory, Reduced, Reducer, Scope
from sage.rng import seed_at
from sage.timing import phase

Parts = dict[str, Tensor]
"""Payload of a vector: 1-D tensors by kind (`values`, `scales`, ...)."""


class Quantiser(Reducer):
    """A reducer that sends a code for every element, usually with a scale for each group.

    A method defines its codes in `encode` and their values in `decode`. Every rank gathers all ranks' codes
    and averages the decoded values; the residual keeps the difference from this rank's own decoded values.
    Vectors are the layout's groups, concatenated, or the elements of each group that a sparsifier has
    selected (`sage.reduction.hybrid`): any group may then be empty.

    `compress` and `average` do the same with the residual and with the payloads of all ranks. A method whose
    kernels fuse these steps is a `FusedQuantiser`.
    """

    memory: ClassVar[Memory] = "residual"
    decides_by: Scope = "group"
    grouping = "layer"
    rounds = True
    serves: ClassVar[bool] = True
    """Whether a server can encode the mean by the same rule (`sage.reduction.served`)."""
    even: bool = True
    """Whether the lengths of the parts follow from the groups' sizes alone."""

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        """Encode x. NaN and infinity must make the decoded vector not finite somewhere.

        Args:
            x_N: Elements of all groups, concatenated, `sizes[g]` of group g; not modified.
            sizes: Number of elements of each group (G); they sum to N.
            wire: For values that ranks must agree on first, such as a common scale.

        Returns:
            The parts to send, by kind.
        """
        raise NotImplementedError

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        """Decode one rank's parts to N values of x's dtype."""
        raise NotImplementedError

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        """Accumulate, encode, and leave in the residual what the parts do not represent.

        Args:
            grad_N: The gradient; without a residual it is the signal, and is not modified.
            residual_N: Accumulated into; becomes the error, 0 where that is not finite.
            sizes: Number of elements of each group (G); they sum to N.
            wire: As for `encode`.
        """
        signal_N = ops.accumulate(grad_N, residual_N)
        parts = self.encode(signal_N, sizes, wire)
        if residual_N is not None:
            ops.keep_error(residual_N, self.decode(parts, sizes))
        return parts

    def compress_signal(self, signal_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        """Encode a complete signal (float32); leave in it what the parts do not represent, as `compress`."""
        parts = self.encode(signal_N, sizes, wire)
        ops.keep_error(signal_N, self.decode(parts, sizes))
        return parts

    def compress_mean(
        self,
        grad_N: Tensor,
        residual_N: Tensor | None,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        wire: Wire,
        *,
        out: Parts,
    ) -> Parts:
        """Accumulate, add the payloads of others, and encode the mean as `compress`; leave its error times W.

        Args:
            grad_N: The gradient; without a residual it may be overwritten.
            residual_N: Accumulated into; becomes the error times W.
            rows: The parts of W − 1 payloads by kind, one row for each; with no row, W is 1.
            sizes: Number of elements of each group (G); they sum to N.
            wire: As for `encode`.
            out: Memory into which the parts may be written.
        """
        num = 1 + len(next(iter(rows.values())))
        if num == 1:
            return self.compress(grad_N, residual_N, sizes, wire)
        # With a residual, the mean is formed there, where its error is to be left.
        mean_N = grad_N.float() if residual_N is None else residual_N.add_(grad_N)
        self.average(mean_N, rows, sizes, divisor=num, added=True)
        if residual_N is None:
            return self.encode(mean_N, sizes, wire)
        parts = self.compress_signal(residual_N, sizes, wire)
        residual_N.mul_(num)
        return parts

    def average(
        self,
        out_N: Tensor,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        *,
        divisor: int,
        added: bool = False,
    ) -> Tensor:
        """Decode W payloads, add them in their order, and divide.

        Args:
            out_N: Output; overwritten, or with `added` the first summand.
            rows: The parts of the payloads by kind, one row for each payload.
            sizes: Number of elements of each group (G).
            divisor: The sum is divided by it.
            added: Whether the sum begins with `out_N`, or with 0.
        """
        if not added:
            out_N.zero_()
        for row in range(len(next(iter(rows.values())))):
            out_N += self.decode({kind: part_W[row] for kind, part_W in rows.items()}, sizes)
        return out_N if divisor == 1 else out_N.div_(divisor)

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int] | None:
        """Bytes of `encode`'s parts by kind, as the docstring states them; None if it does not."""
        return None

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each of the layout's groups."""
        return [stop - start for start, stop in self.layout.groups]

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        sizes = self.sizes
        with phase("select"):
            parts = self.compress(grad_N, residual_N, sizes, wire)
        if self.even:
            rows_W = dict(zip(parts, wire.gather_rows(**parts), strict=True))
            with phase("scatter"):
                return Reduced(self.average(grad_N, rows_W, sizes, divisor=wire.world_size))
        payloads = gather_parts(wire, parts, even=False)
        with phase("scatter"):
            for rank, payload in enumerate(payloads):
                row = {kind: part[None] for kind, part in payload.items()}
                divisor = wire.world_size if rank + 1 == wire.world_size else 1
                self.average(grad_N, row, sizes, divisor=divisor, added=rank > 0)
            return Reduced(grad_N)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        own_bytes = self.bytes_of(self.sizes)
        if own_bytes is None or self.even:
            return own_bytes
        return {**own_bytes, "sizes": own_bytes.get("sizes", 0) + 8 * len(own_bytes)}


class FusedQuantiser(Quantiser):
    """A quantiser that defines `compress` and `average` by fused kernels; `encode` and `decode` follow."""

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        raise NotImplementedError

    def average(
        self,
        out_N: Tensor,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        *,
        divisor: int,
        added: bool = False,
    ) -> Tensor:
        raise NotImplementedError

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        return self.compress(x_N, None, sizes, wire)

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        rows = {kind: part[None] for kind, part in parts.items()}
        device = next(iter(parts.values())).device
        return self.average(torch.empty(sum(sizes), device=device), rows, sizes, divisor=1)


class LevelQuantiser(FusedQuantiser):
    """A quantiser that sends `values`, codes of its `coding`, and `scales`, one for each bucket."""

    coding: ops.Coding

    def average(
        self,
        out_N: Tensor,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        *,
        divisor: int,
        added: bool = False,
    ) -> Tensor:
        return ops.average(
            out_N, rows["values"], rows["scales"], sizes, self.coding, divisor=divisor, added=added
        )


class RoundingOptions(TypedDict, total=False):
    """The option that randomly rounding quantisers share."""

    rounding_seed: int


class RandomQuantiser(Quantiser):
    """A quantiser that rounds at random and is unbiased: the expectation of the decoded value is x.

    Because it is unbiased, it needs no error feedback and has none by default. Each element is rounded with
    16 random bits (`sage.ops.random_bits`), so the expectation is exact to 2⁻¹⁷ of the distance between its
    two neighbours.

    Args:
        rounding_seed: Seed of the random rounding; an element's random bits depend only on it, the step, the
            rank and the element's position in the whole model.
    """

    memory = "none"
    step: Tensor

    def __init__(self, *, rounding_seed: int = 0) -> None:
        super().__init__()
        self._seed = rounding_seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def next_key(self, wire: Wire) -> int:
        """Count a step, and return the key of its random bits on this rank. Call it once per step."""
        self.step += 1
        return seed_at(self._seed, int(self.step), wire.stream)

    def positions(self, x_N: Tensor) -> ops.Positions:
        """Positions of a vector's elements in the whole model, on which their random bits depend.

        Those of a sparsifier's selection follow one another, from the first position of its vector on.
        """
        if x_N.numel() == self.layout.numel:
            return self.layout.positions
        return ops.Positions((0,), (min(self.layout.positions.firsts),))

    def uniform(self, x_N: Tensor, wire: Wire) -> Tensor:
        """Random numbers from (0, 1) for each element (float32, N), 2⁻¹⁶ apart. Call it once per step."""
        key, positions = self.next_key(wire), self.positions(x_N)
        bits_N = ops.random_bits(x_N.numel(), key, positions=positions, device=x_N.device)
        return bits_N.float().add_(0.5).mul_(2.0**-16)


def gather_parts(wire: Wire, parts: Parts, *, even: bool) -> list[Parts]:
    """Gather the parts of every rank, by rank; `even`: all ranks' parts have the same lengths."""
    if not even:
        return [dict(zip(parts, row, strict=True)) for row in wire.gather_streams(**parts)]
    gathered = wire.gather(**parts)
    return [dict(zip(parts, row, strict=True)) for row in zip(*gathered, strict=True)]


def per_group(x_N: Tensor, sizes: Sequence[int], of: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to each group and stack the results (G); an empty group gives 0."""
    groups = x_N.split(list(sizes))
    return torch.stack([of(x) if x.numel() else x.new_zeros(()) for x in groups] or [x_N.new_zeros(())])[
        : len(sizes)
    ]


def counts_of(sizes: Sequence[int], beside: Tensor) -> Tensor:
    """Number of elements of each group, at least 1, to divide sums by (float64, G)."""
    return torch.tensor(list(sizes), dtype=torch.float64, device=beside.device).clamp_(min=1)
