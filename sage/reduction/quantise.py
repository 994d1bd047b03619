"""Quantisers: reducers that send every element in few bits."""
# N = elements of the flat vector or of a sparsifier's selection from it, G = groups

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypedDict

import torch
from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.reducer import Memory, Reduced, Reducer
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
    """

    memory: ClassVar[Memory] = "residual"
    grouping = "layer"
    rounds = True
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
            signal_N = ops.accumulate(grad_N, residual_N)
            parts = self.encode(signal_N, sizes, wire)
            if residual_N is not None:
                keep_error(residual_N, self.decode(parts, sizes))
        rows = gather_parts(wire, parts, even=self.even)
        with phase("scatter"):
            grad_N.zero_()
            for row in rows:
                grad_N += self.decode(row, sizes)
            return Reduced(grad_N.div_(wire.world_size))

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        own_bytes = self.bytes_of(self.sizes)
        if own_bytes is None or self.even:
            return own_bytes
        return {**own_bytes, "sizes": own_bytes.get("sizes", 0) + 8 * len(own_bytes)}


class RoundingOptions(TypedDict, total=False):
    """The option that randomly rounding quantisers share."""

    rounding_seed: int


class RandomQuantiser(Quantiser):
    """A quantiser that rounds at random and is unbiased: the expectation of the decoded value is x.

    Because it is unbiased, it needs no error feedback and has none by default.

    Args:
        rounding_seed: Seed of the random rounding; a step's random numbers depend only on it, the step and
            the rank.
    """

    memory = "none"
    step: Tensor

    def __init__(self, *, rounding_seed: int = 0) -> None:
        super().__init__()
        self._seed = rounding_seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def draw(self, x_N: Tensor, wire: Wire, bits: int) -> Tensor:
        """Random integers of `bits` bits, 1 to 24, for each element (int32, N), separate per step and rank.

        Call it once per step: it counts the steps.
        """
        self.step += 1
        return ops.draw(x_N.numel(), bits, seed_at(self._seed, int(self.step), wire.rank), x_N.device)

    def uniform(self, x_N: Tensor, wire: Wire) -> Tensor:
        """Random numbers from [0, 1) for each element (float32, N). Call it once per step."""
        return self.draw(x_N, wire, 24).float().mul_(2.0**-24)


def keep_error(signal_N: Tensor, sent_N: Tensor) -> None:
    """Subtract what was sent from the signal in place; elements that are not finite become 0."""
    signal_N.sub_(sent_N).nan_to_num_(0.0, 0.0, 0.0)


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


def all_finite(x: Tensor) -> Tensor:
    """Whether every element is finite, as a tensor of one bool."""
    if x.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=x.device)
    least, largest = x.aminmax()  # both are NaN if any element is
    return least.isfinite() & largest.isfinite()
