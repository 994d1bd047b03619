"""Orthonormal transforms before a quantiser: `--reducer hadamard+int8` is a transform and a quantiser."""
# N = elements of the flat vector

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.composed import Composed, build_part
from sage.reduction.layout import Layout
from sage.reduction.quantise import Quantiser
from sage.reduction.reducer import Reduced, Reducer
from sage.registry import Option, composed_options
from sage.timing import phase

PRECISION = 2.0**-17
"""Rounding of a transform and its inverse, relative to the largest element."""


class Transform(Reducer):
    """An orthonormal transform, the same on every rank and in every step.

    A method defines it in `transform`. By itself it is a dense all-reduce of the transformed vector. Payload
    bytes per rank: 4 per element.
    """

    decides_by = "element"
    rounds = True
    precision = PRECISION

    def transform(self, x_N: Tensor, sizes: Sequence[int], *, inverse: bool = False) -> Tensor:
        """Transform a vector in place, or apply the inverse.

        Args:
            x_N: The vector (float32), finite or not; overwritten.
            sizes: Number of elements of each group, which are transformed independently.
            inverse: Whether to apply the inverse.
        """
        raise NotImplementedError

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        with phase("select"):
            signal_N = self.transform(ops.accumulate(grad_N, residual_N).float(), self._sizes)
        mean_N = wire.mean(signal_N)
        with phase("scatter"):
            grad_N.copy_(self.transform(mean_N, self._sizes, inverse=True))
            if residual_N is not None:
                residual_N.zero_()
            return Reduced(grad_N)

    @property
    def _sizes(self) -> list[int]:
        return [stop - start for start, stop in self.layout.groups]

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return {"values": 4 * counts[rank]}


class Transformed(Composed):
    """A transform, a quantiser of its result, and the inverse for the mean and for the residual.

    The residual is that of the vector before the transform. Payload bytes per rank: those of the quantiser.

    Raises:
        TypeError: if neither part takes an option.
        ValueError: if an option is out of range.
    """

    rounds = True
    transform: Transform
    quantiser: Quantiser
    transform_type: ClassVar[type[Transform]]
    quantiser_type: ClassVar[type[Quantiser]]

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.transform = build_part(self.transform_type, given)
        self.quantiser = build_part(self.quantiser_type, given)
        self.precision = max(self.quantiser.precision, self.transform.precision)
        self.conserves = self.quantiser.conserves
        self.decides_by = "vector" if self.quantiser.decides_by == "vector" else "group"

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """Options of both parts."""
        return composed_options(cls.transform_type, cls.quantiser_type)

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        self.transform.bind(layout)
        self.quantiser.bind(layout)

    def begin_epoch(self, epoch: int, lr: float, wire: Wire) -> None:
        self.quantiser.begin_epoch(epoch, lr, wire)

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        sizes = self.quantiser.sizes
        with phase("select"):
            if residual_N is None:
                signal_N = self.transform.transform(grad_N.float(), sizes)
            else:
                self.transform.transform(ops.accumulate(grad_N, residual_N), sizes)
                signal_N = grad_N.float().zero_()  # what is added to the complete signal
        mean_N = self.quantiser(signal_N, residual_N, wire).mean_N
        with phase("scatter"):
            grad_N.copy_(self.transform.transform(mean_N, sizes, inverse=True))
            if residual_N is not None:
                self.transform.transform(residual_N, sizes, inverse=True)
            return Reduced(grad_N)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        return self.quantiser.payload(counts, rank)

    def report(self) -> dict[str, float]:
        return self.quantiser.report()


def transformed(transform: type[Transform], quantiser: type[Quantiser]) -> type[Transformed]:
    """Compose a transform and a quantiser into a reducer."""
    return type(
        f"{transform.__name__}{quantiser.__name__}",
        (Transformed,),
        {
            "__doc__": f"{transform.__name__}'s transform, encoded by {quantiser.__name__}.",
            "__module__": Transformed.__module__,
            "transform_type": transform,
            "quantiser_type": quantiser,
            "memory": quantiser.memory,
            "grouping": quantiser.grouping,
            "spares_small": quantiser.spares_small,
            "later": transform.later | quantiser.later,
        },
    )
