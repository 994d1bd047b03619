"""The contract that every reducer keeps, and what they share.

A reducer is handed this rank's flat gradient and its residual, and returns the mean over ranks of what was
sent. It leaves in the residual what was not. See `docs/tutorials/reducer.md`.
"""
# N = elements of the flat vector, K = elements this rank sends, M = all ranks together

from dataclasses import dataclass
from typing import ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.layout import Layout
from sage.timing import phase

Memory = Literal["none", "residual", "momentum", "union"]


@dataclass(frozen=True)
class Reduced:
    """What came of one reduction."""

    mean_N: Tensor
    """The mean over ranks of what was sent; the same bits on every rank."""
    sent: Tensor | None = None
    """Indices that left this rank (for momentum masking); None where everything left."""
    density: float = 1.0
    """Elements sent over N, averaged over the ranks; the same on every rank."""
    union_M: Tensor | None = None
    """Indices that any rank has sent, as often as they were; None where that is not known, or all of them."""


class Reducer(nn.Module):
    """One way to take the mean of a gradient over ranks.

    State lives in buffers; `state_dict()` is the checkpoint. Options are the keyword-only parameters of
    `__init__`; each becomes a command-line flag, its help taken from `Args:`.
    """

    conserves: bool = True
    """The law: residual_before + gradient = sent + residual_after, and mean_N = the mean over ranks of it."""
    precision: float = 2.0**-20
    """Relative to the largest element, how closely the law holds (casts that are not fed back loosen it)."""
    memory: ClassVar[Memory] = "none"
    """The default error feedback; see `sage.reduction.error_feedback`."""
    grouping: ClassVar[str] = "model"
    """The unit over which it decides where the user does not say: `model`, `layer` or `bucket:<MB>`."""

    later: ClassVar[frozenset[str]] = frozenset()
    """Options added since runs were first recorded: at their defaults they are left out of a run's hash."""
    spares_small: ClassVar[bool] = True
    """Whether tensors under `min_compress` elements go dense beside it."""
    rounds: ClassVar[bool] = False
    """Whether what arrives of an element may be far from it, so that to send all is not yet an all-reduce."""
    needs_squares: ClassVar[bool] = False
    """Whether the engine is to call `observe` before each `forward`."""
    sub_batches: int | None = 1
    """Where it is: the parts of a batch that count as a sample each; None: its samples one by one."""

    def bind(self, layout: Layout) -> None:
        """Learn where parameters and groups lie in the vector, once, before the first `forward`."""
        self.layout = layout

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        """Reduce one step's gradient.

        Args:
            grad_N: This rank's gradient. Yours for the call: it may be overwritten and returned as `mean_N`.
            residual_N: What earlier steps did not send; the signal is residual + gradient. Update it in place
                to what this step did not send. None: there is no memory, and what is not sent is lost.
            wire: Make the same calls on every rank, whatever the data.
        """
        raise NotImplementedError

    def begin_epoch(self, epoch: int, lr: float, wire: Wire) -> None:
        """Called on every rank before an epoch's first step."""

    def observe(self, square_N: Tensor) -> None:
        """Hear, before `forward`, of how the gradient Σ_z g_z/B differs between this rank's B samples z.

        Args:
            square_N: Σ_z (g_z/B)², scaled and clipped as the gradient is; overwritten after `forward`. A
                sample may also be a part of the batch (`sage.train.squared_gradients`).
        """

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        """The bytes this rank hands over in one step, by kind, worked out from what the docstring states.

        The conformance suite holds the ledger against it. None: not stated.

        Args:
            counts: Elements each rank sends.
            rank: Whose bytes.
        """
        return None

    def report(self) -> dict[str, float]:
        """Scalars of the last step for the run's record, such as the `threshold` that it used.

        `density_asked` is the step's target density. A reducer without such a target leaves it out: the
        record then holds null, and no report judges the density against a target.
        """
        return {}


class SparsifierOptions(TypedDict, total=False):
    """The options that all sparsifiers share."""

    values: Literal["fp32", "fp16"]
    indices: Literal["int32", "coded"]


class Sparsifier(Reducer):
    """A reducer that sends some elements as they are, as values and indices, and keeps the rest.

    A method says which elements in `select`. Values may travel as fp16 (`values="fp16"`), and the rounding
    error then stays in the residual. Counts that may differ between the ranks (`even = False`) are exchanged
    first, and the shorter payloads padded. Bytes each rank hands over: 4 or 2 a value, 4 an index, and where
    counts may differ 8 for its own and as many as the longest payload has more.

    With `indices="coded"` an index takes as many bytes as its gap from the one before needs, 7 bits in each,
    or, where that is less, all take a bit for each element of the vector. Then 16 bytes tell how long values
    and indices are, and nothing is padded.

    Args:
        values: Precision in which values travel.
        indices: How indices travel: as they are, or coded, in a quarter to a half of the bytes.
    """

    memory = "residual"
    even: ClassVar[bool] = True
    """Whether every rank selects the same number of elements, whatever its data."""

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
        """Indices into the signal (int64, ascending) of what to send."""
        raise NotImplementedError

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        """Values and indices (int32, ascending) of what to send, taken out of the residual if there is one.

        A method that need not see the signal to decide does better to override this by a fused op, such as
        `ops.take_above`, than `select`: it reads and writes the vector once.
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
        """Hear of a step how many elements each rank has selected, and what came of them."""

    def _gather(self, values_K: Tensor, at_K: Tensor, n: int, wire: Wire) -> tuple[list[int], Tensor, Tensor]:
        """Every rank's count, and their values and indices one after another."""
        if self.codes_indices:
            return gather_coded(wire, at_K, n, values=values_K)
        if self.even:
            values_WK, at_WK = wire.gather(values=values_K, indices=at_K)
            return [at_K.numel()] * wire.world_size, values_WK.view(-1), at_WK.view(-1)
        counts, (values_M, at_M) = wire.gather_uneven(values=values_K, indices=at_K)
        return counts, values_M, at_M

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if self.codes_indices:  # their bytes do not follow from the counts
            return None
        own, item = counts[rank], self.dtype.itemsize
        payload = {"values": item * own, "indices": 4 * own}
        return payload if self.even else {**payload, "sizes": 8, "padding": (item + 4) * (max(counts) - own)}


def gather_coded(wire: Wire, at_K: Tensor, n: int, *, values: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """Every rank's count, and their values and indices one after another, the indices coded on the way.

    Args:
        at_K: int32, ascending, of a vector of n elements.
        values: K of them.
    """
    rows = wire.gather_streams(values=values, indices=ops.encode_indices(at_K, n))
    values_M = torch.cat([values_K for values_K, _ in rows])
    at_M = torch.cat([ops.decode_indices(bytes_B, n) for _, bytes_B in rows])
    return [values_K.numel() for values_K, _ in rows], values_M, at_M


def check_fraction(name: str, value: float) -> float:
    """`value` where it is a share in (0, 1].

    Raises:
        ValueError: where it is not.
    """
    if not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: expected a share of the elements, above 0 and at most 1")
    return float(value)
