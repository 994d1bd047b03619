"""Hybrids: a sparsifier selects the elements that are sent, and a quantiser encodes their values.

`--reducer topk+terngrad` is one; any sparsifier can be combined with any quantiser. The language-model study
(maysarahammouda/GradComp) has four: `topk+efsign`, `topk+terngrad`, `adacomp+efsign`, `adacomp+terngrad`. As
in the study, each layer has its own selection and scale. By default both parts follow their papers; the
study's own settings are `--rule gradcomp` for its AdaComp, which has no bins, and `--clip 17.1` for its
TernGrad. Indices are encoded and ternary values take two bits here, which changes the bytes and not the mean.
"""
# N = elements of the flat vector, K = elements this rank selects, G = groups

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.composed import Composed, build_part
from sage.reduction.layout import Layout
from sage.reduction.quantise import Quantiser, gather_parts
from sage.reduction.reducer import Reduced, Reducer, Sparsifier
from sage.reduction.transform import Transform, transformed
from sage.registry import ALLOCATION_OPTIONS, Option, composed_options
from sage.timing import phase


class Hybrid(Composed):
    """A sparsifier's selection, encoded by a quantiser; error feedback covers both.

    The values selected in a group are encoded as if they were the whole group. The default grouping is the
    sparsifier's. Payload bytes per rank: those of the quantiser for the selected number of elements, 8 for
    the length of each part, and the encoded indices (`ops.encode_indices`).

    Raises:
        TypeError: if neither part takes an option.
        ValueError: if an option is out of range.
    """

    memory = "residual"
    rounds = True
    sparsifier: Sparsifier
    quantiser: Quantiser
    sparsifier_type: ClassVar[type[Sparsifier]]
    quantiser_type: ClassVar[type[Quantiser]]

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.sparsifier = build_part(self.sparsifier_type, given)
        codes = {name: value for name, value in given.items() if name not in ALLOCATION_OPTIONS}
        self.quantiser = build_part(self.quantiser_type, codes)
        self.precision = self.quantiser.precision
        crosses = "vector" in (self.sparsifier.decides_by, self.quantiser.decides_by)
        self.decides_by = "vector" if crosses else "group"
        self.sub_batches = self.sparsifier.sub_batches

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """Options of both parts, except those that a part does not take in a hybrid."""
        return composed_options(cls.sparsifier_type, cls.quantiser_type)

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        self.sparsifier.bind(layout)
        self.quantiser.bind(layout)

    def begin_epoch(self, epoch: int, lr: float, wire: Wire) -> None:
        self.sparsifier.begin_epoch(epoch, lr, wire)
        self.quantiser.begin_epoch(epoch, lr, wire)

    def observe(self, square_N: Tensor) -> None:
        self.sparsifier.observe(square_N)

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        n = grad_N.numel()
        with phase("select"):
            values_K, at_K = self.sparsifier.take(grad_N, residual_N, wire)
            sizes = self._sizes(at_K)
            parts = self.quantiser.encode(values_K, sizes, wire)
            if residual_N is not None:
                left_K = values_K.clone()
                ops.keep_error(left_K, self.quantiser.decode(parts, sizes))
                residual_N[at_K] += left_K
        rows = gather_parts(wire, {**parts, "indices": ops.encode_indices(at_K, n)}, even=False)
        with phase("scatter"):
            at = [ops.decode_indices(row.pop("indices"), n) for row in rows]
            values = [
                self.quantiser.decode(row, self._sizes(at_K)) for row, at_K in zip(rows, at, strict=True)
            ]
            counts, at_M = [at_K.numel() for at_K in at], torch.cat(at)
            mean_N = ops.scatter_mean(torch.cat(values), at_M, counts, out_N=grad_N)
        self.sparsifier.learn(counts, mean_N, wire)
        return Reduced(mean_N, at_K, sum(counts) / (len(counts) * max(1, n)), at_M)

    def _sizes(self, at_K: Tensor) -> list[int]:
        """Number of the indices in each group."""
        stops_G = torch.tensor([stop for _, stop in self.layout.groups], device=at_K.device)
        below_G = torch.searchsorted(at_K, stops_G)
        sizes: list[int] = below_G.diff(prepend=below_G.new_zeros(1)).tolist()
        return sizes

    def report(self) -> dict[str, float]:
        return {**self.sparsifier.report(), **self.quantiser.report()}


@cache
def hybrid(sparsifier: type[Sparsifier] | type[Transform], quantiser: type[Quantiser]) -> type[Reducer]:
    """Compose a sparsifier, or a transform, and a quantiser into a reducer.

    Raises:
        ValueError: if they are not a sparsifier or transform and a quantiser, in this order.
    """
    if issubclass(sparsifier, Transform) and issubclass(quantiser, Quantiser):
        return transformed(sparsifier, quantiser)
    if not (issubclass(sparsifier, Sparsifier) and issubclass(quantiser, Quantiser)):
        raise ValueError(
            f"{sparsifier.__name__} + {quantiser.__name__}: expected a method that selects elements, such as "
            "topk, or hadamard, and then one that encodes them, such as terngrad"
        )
    return type(
        f"{sparsifier.__name__}{quantiser.__name__}",
        (Hybrid,),
        {
            "__doc__": f"{sparsifier.__name__}'s selection, encoded by {quantiser.__name__}.",
            "__module__": Hybrid.__module__,
            "sparsifier_type": sparsifier,
            "quantiser_type": quantiser,
            "grouping": sparsifier.grouping,
            "later": sparsifier.later | quantiser.later,
            "needs_squares": sparsifier.needs_squares,
            "conserves": quantiser.conserves,
        },
    )
