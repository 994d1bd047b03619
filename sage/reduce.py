"""The contract that every reducer keeps, what they share, and error feedback.

A reducer is handed this rank's flat gradient and its residual, and returns the mean over ranks of what was
sent. It leaves in the residual what was not. See `docs/adding-a-reducer.md`.
"""
# N = elements of the flat vector, K = elements this rank sends, G = groups of the layout

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sage import ops
from sage.clock import phase
from sage.comm.wire import Wire
from sage.layout import Layout


@dataclass(frozen=True)
class Reduced:
    """What came of one reduction."""

    mean_N: Tensor
    """The mean over ranks of what was sent; the same bits on every rank."""
    sent: Tensor | None = None
    """Indices that left this rank (for momentum masking); None where everything left."""
    density: float = 1.0
    """Elements sent over N, averaged over the ranks; the same on every rank."""


class Reducer(nn.Module):
    """One way to take the mean of a gradient over ranks.

    State lives in buffers; `state_dict()` is the checkpoint. Options are the keyword-only parameters of
    `__init__`; each becomes a command-line flag, its help taken from `Args:`.
    """

    conserves: ClassVar[bool] = True
    """The law: residual_before + gradient = sent + residual_after, and mean_N = the mean over ranks of it."""
    precision: float = 2.0**-20
    """Relative to the largest element, how closely the law holds (casts that are not fed back loosen it)."""
    memory: ClassVar[Literal["none", "residual"]] = "none"
    """Whether it wants a residual where the user does not say."""
    grouping: ClassVar[str] = "model"
    """The unit over which it decides where the user does not say: `model`, `layer` or `bucket:<MB>`."""

    spares_small: ClassVar[bool] = True
    """Whether tensors under `min_compress` elements go dense beside it."""

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

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        """The bytes this rank hands over in one step, by kind, worked out from what the docstring states.

        The conformance suite holds the ledger against it. None: not stated.

        Args:
            counts: Elements each rank sends.
            rank: Whose bytes.
        """
        return None

    def report(self) -> dict[str, float]:
        """Scalars of the last step worth recording, such as `threshold` and `density_asked`."""
        return {}


class Sparsifier(Reducer):
    """A reducer that sends some elements as they are, as values and int32 indices, and keeps the rest.

    A method says which elements in `select`; values may travel as fp16 (`values="fp16"`), and the rounding
    error then stays in the residual. Counts that may differ between the ranks (`even = False`) are exchanged
    first, and the shorter payloads padded. Bytes each rank hands over: 4 or 2 a value, 4 an index, and where
    counts may differ 8 for its own and as many as the longest payload has more.
    """

    memory = "residual"
    even: ClassVar[bool] = True
    """Whether every rank selects the same number of elements, whatever its data."""

    def __init__(self, *, values: Literal["fp32", "fp16"] = "fp32") -> None:
        super().__init__()
        dtypes = {"fp32": torch.float32, "fp16": torch.float16}
        if values not in dtypes:
            raise ValueError(f"values={values!r}: expected fp32 or fp16")
        self.dtype = dtypes[values]
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
        if self.even:
            values_WK, at_WK = wire.gather(values=values_K, indices=at_K)
            counts = [at_K.numel()] * wire.world_size
            values_M, at_M = values_WK.view(-1), at_WK.view(-1)
        else:
            counts, (values_M, at_M) = wire.gather_uneven(values=values_K, indices=at_K)
        with phase("scatter"):
            mean_N = ops.scatter_mean(values_M, at_M, counts, out_N=grad_N)
        return Reduced(mean_N, at_K, sum(counts) / (len(counts) * max(1, grad_N.numel())))

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        own, item = counts[rank], self.dtype.itemsize
        payload = {"values": item * own, "indices": 4 * own}
        return payload if self.even else {**payload, "sizes": 8, "padding": (item + 4) * (max(counts) - own)}


class ErrorFeedback(nn.Module):
    """A reducer with a memory: keeps what was not sent and adds it to the next gradient (Seide et al., 2014).

    Args:
        reducer: The method.
        layout: The flat vector it reduces.
        memory: `residual`, or `none` to lose what was not sent; by default what the reducer asks for.
    """

    residual_N: Tensor | None

    def __init__(
        self,
        reducer: Reducer,
        layout: Layout,
        *,
        memory: Literal["none", "residual"] | None = None,
    ) -> None:
        super().__init__()
        self.reducer = reducer
        reducer.bind(layout)
        keeps = (memory or reducer.memory) == "residual"
        self.register_buffer("residual_N", torch.zeros(layout.numel) if keeps else None)

    def forward(self, grad_N: Tensor, wire: Wire) -> Reduced:
        """Reduce one gradient; it may be overwritten."""
        return self.reducer(grad_N, self.residual_N, wire)


def check_fraction(name: str, value: float) -> float:
    """`value` where it is a share in (0, 1].

    Raises:
        ValueError: where it is not.
    """
    if not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}: expected a share of the elements, above 0 and at most 1")
    return float(value)
