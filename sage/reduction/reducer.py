"""The contract of every reducer, and the base class of sparsifiers.

A reducer receives this rank's flat gradient and its residual. It returns the mean over ranks of what was sent
and leaves in the residual what was not sent. See `docs/tutorials/reducer.md`.
"""
# N = elements of the flat vector, K = elements this rank sends, M = all ranks together

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.layout import Layout
from sage.timing import phase

Memory = Literal["none", "residual", "momentum", "union", "loco", "ef21", "ef21-sgdm", "econtrol", "diana"]
Scope = Literal["element", "group", "vector"]
"""What a decision about an element depends on."""


@dataclass(frozen=True)
class Reduced:
    """The result of one reduction."""

    mean_N: Tensor
    """Mean over ranks of what was sent (N); bitwise identical on every rank."""
    sent: Tensor | None = None
    """Indices that this rank sent (for momentum factor masking); None if it sent every element."""
    density: float = 1.0
    """Elements sent divided by N, averaged over the ranks; the same on every rank."""
    union_M: Tensor | None = None
    """Indices that any rank sent, with repetitions; None if unknown, or if all were sent."""


@dataclass(frozen=True)
class AllReduce:
    """A reduction that is one all-reduce, which a mount may start without waiting for it."""

    share_N: Tensor
    """What is summed over ranks, in place."""
    finish: Callable[[], object]
    """Writes the mean over the gradient once the sum is complete."""


class Reducer(nn.Module):
    """A method that computes the mean of a gradient over ranks.

    State is held in buffers; `state_dict()` is the checkpoint, one per rank. Options are the keyword-only
    parameters of `__init__`. Each becomes a command-line flag; its help text is taken from `Args:`.
    """

    conserves: bool = True
    """Conservation: residual_before + gradient = sent + residual_after; mean_N = mean over ranks of sent."""
    precision: float = 2.0**-20
    """Tolerance of conservation, relative to the largest element; larger if a cast loses precision."""
    memory: ClassVar[Memory] = "none"
    """Default error feedback; see `sage.reduction.error_feedback`."""
    grouping: ClassVar[str] = "model"
    """Default unit of a decision (selection, scale): `model`, `layer` or `bucket:<MB>`."""

    later: ClassVar[frozenset[str]] = frozenset()
    """Options added since runs were first recorded; at their defaults they are left out of a run's hash."""
    decides_by: Scope = "vector"
    """What a decision (selection, scale, rank) about an element depends on: this `element` alone, the `group`
    of the layout that contains it, or the whole `vector`. If a mount divides the gradient into buckets, no
    decision can cross a bucket."""
    spares_small: ClassVar[bool] = True
    """Whether tensors with fewer than `min_compress` elements are sent dense, outside the reducer."""
    rounds: ClassVar[bool] = False
    """Whether received values may differ much from those sent: density 1 is then not an exact all-reduce."""
    needs_squares: ClassVar[bool] = False
    """Whether the engine must call `observe` before each `forward`."""
    sub_batches: int | None = 1
    """With `needs_squares`, the number of parts of a batch that each count as a sample; None: its samples."""
    layout: Layout = Layout((), (), ())
    """Positions of the parameters and groups; without any before `bind`."""

    def bind(self, layout: Layout) -> None:
        """Receive the positions of parameters and groups; called once, before the first `forward`."""
        self.layout = layout

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        """Reduce one step's gradient.

        Args:
            grad_N: This rank's gradient. The callee may overwrite it and return it as `mean_N`.
            residual_N: What earlier steps did not send; the signal is residual + gradient. Update it in place
                to what this step did not send. None: no error feedback, and what is not sent is lost.
            wire: The communicator. Make the same calls on every rank, for any data.

        Returns:
            The mean and what was sent.
        """
        raise NotImplementedError

    def is_all_reduce(self, world_size: int, device: torch.device) -> bool:
        """Whether `forward` without a residual is what `as_all_reduce` describes."""
        return False

    def as_all_reduce(self, grad_N: Tensor, world_size: int) -> AllReduce:
        """Prepare a reduction without a residual that is one all-reduce; only where `is_all_reduce`."""
        raise NotImplementedError

    def begin_epoch(self, epoch: int, lr: float, wire: Wire) -> None:
        """Called on every rank before the first step of an epoch, with its number and learning rate."""

    def observe(self, square_N: Tensor) -> None:
        """Receive Σ_z (g_z/B)² before `forward`; this rank's gradient is Σ_z g_z/B over its B samples z.

        Args:
            square_N: Σ_z (g_z/B)², scaled and clipped as the gradient is; overwritten after `forward`. A
                sample may also be a part of the batch (`sage.train.squared_gradients`).
        """

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        """Payload bytes of one step by kind, as the reducer's docstring states them.

        The conformance suite compares them with the ledger.

        Args:
            counts: Number of elements that each rank sent.
            rank: The rank whose bytes to compute.

        Returns:
            Bytes by kind (`values`, `indices`, …), or None if the docstring does not determine them.
        """
        return None

    def report(self) -> dict[str, float]:
        """Scalars of the last step for the run's record, such as the `threshold` used.

        `density_asked` is the target density of the step. A reducer without a target omits it: the record
        then holds null, and no report compares the density with a target.
        """
        return {}


class SparsifierOptions(TypedDict, total=False):
    """The options that all sparsifiers share."""

    values: Literal["fp32", "fp16"]
    indices: Literal["int32", "coded"]


class Sparsifier(Reducer):
    """A reducer that sends selected elements unchanged, as values and indices, and keeps the others.

    A method defines the selection in `select`. With `values="fp16"` values are sent as fp16, and the rounding
    error stays in the residual. If counts may differ between ranks (`even = False`), they are exchanged
    first, and shorter payloads are padded.

    Payload bytes per rank: 4 or 2 per value and 4 per index; if counts may differ, 8 for the count, and
    padding up to the longest payload. With `indices="coded"` the difference between successive indices is
    stored in as many bytes as it needs, 7 bits in each; or all indices are stored as one bit per element of
    the vector, if that is shorter. 16 bytes then hold the lengths of values and indices, and nothing is
    padded.

    Args:
        values: Precision in which values are sent.
        indices: Format of the indices: `int32`, or `coded`, which takes a quarter to a half of the bytes.

    Raises:
        ValueError: if an option is not one of its choices.
    """

    memory = "residual"
    serves: ClassVar[bool] = True
    """Whether a server can select from the mean by the same rule (`sage.reduction.served`)."""
    even: ClassVar[bool] = True
    """Whether every rank selects the same number of elements, for any data."""

    def __init__(
        self, *, values: Literal["fp32", "fp16"] = "fp32", indices: Literal["int32", "coded"] = "int32"
    ) -> None:
        super().__init__()
        dtypes = {"fp32": torch.float32, "fp16": torch.float16}
        if values not in dtypes:
            raise ValueError(f"values={values!r}: expected fp32 or fp16")
        if indices not in ("int32", "coded"):
            raise ValueError(f"indices={indices!r}: expected int32 or coded")
        self.dtype = dtypes[values]
        self.codes_indices = indices == "coded"
        if values == "fp16":
            self.precision = 2.0**-10

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        """Indices of the elements of the signal to send (int64, K, ascending)."""
        raise NotImplementedError

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        """Values and indices (int32, ascending) of what to send, removed from the residual if there is one.

        A method that can decide without forming the signal should override `take` instead of `select` and use
        a fused operation such as `ops.take_above`, which reads and writes the vector once.
        """
        signal_N = ops.accumulate(grad_N, residual_N)
        at_K = self.select(signal_N, wire)
        return ops.take(signal_N, at_K, dtype=self.dtype, keep=residual_N is not None), at_K.int()

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        with phase("select"):
            values_K, at_K = self.take(grad_N, residual_N, wire)
        counts, values_M, at_M = self._gather(values_K, at_K, grad_N.numel(), wire)
        with phase("scatter"):
            mean_N = ops.scatter_mean(values_M, at_M, counts, out_N=grad_N)
        self.learn(counts, mean_N, wire)
        return Reduced(mean_N, at_K, sum(counts) / (len(counts) * max(1, grad_N.numel())), at_M)

    def learn(self, counts: list[int], mean_N: Tensor, wire: Wire) -> None:
        """Called after a step with the number of elements each rank selected and the mean."""

    def _gather(self, values_K: Tensor, at_K: Tensor, n: int, wire: Wire) -> tuple[list[int], Tensor, Tensor]:
        """Count of every rank, and all ranks' values and indices, concatenated by rank."""
        if self.codes_indices:
            return gather_coded(wire, at_K, n, values=values_K)
        if self.even:
            values_WK, at_WK = wire.gather(values=values_K, indices=at_K)
            return [at_K.numel()] * wire.world_size, values_WK.view(-1), at_WK.view(-1)
        counts, (values_M, at_M) = wire.gather_uneven(values=values_K, indices=at_K)
        return counts, values_M, at_M

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if self.codes_indices:  # the bytes of coded indices do not follow from the counts
            return None
        count, item = counts[rank], self.dtype.itemsize
        payload = {"values": item * count, "indices": 4 * count}
        return (
            payload if self.even else {**payload, "sizes": 8, "padding": (item + 4) * (max(counts) - count)}
        )


def gather_coded(wire: Wire, at_K: Tensor, n: int, *, values: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """Gather values and indices, with the indices encoded for the transfer.

    Args:
        wire: The communicator.
        at_K: Indices (int32, ascending) into a vector of n elements.
        n: Length of that vector.
        values: The K values.

    Returns:
        Count of every rank, and all ranks' values and indices, concatenated by rank.
    """
    rows = wire.gather_streams(values=values, indices=ops.encode_indices(at_K, n))
    values_M = torch.cat([values_K for values_K, _ in rows])
    at_M = torch.cat([ops.decode_indices(bytes_B, n) for _, bytes_B in rows])
    return [values_K.numel() for values_K, _ in rows], values_M, at_M


def check_fraction(name: str, value: float) -> float:
    """Return `value` if it is in (0, 1].

    Raises:
        ValueError: if it is not.
    """
    if not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: expected a share of the elements, above 0 and at most 1")
    return float(value)
