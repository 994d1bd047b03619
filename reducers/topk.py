"""Top-k: sends the k = max(1, ⌊d·n⌋) largest magnitudes of each layer (Aji & Heafield, EMNLP 2017)."""
# N = elements of the flat vector, K = elements selected

import math
from typing import Literal, Unpack

import torch
from torch import Tensor

from sage.reduction import (
    ALLOCATION,
    Allocated,
    AllocationOptions,
    Layout,
    Setting,
    Sparsifier,
    SparsifierOptions,
    Wire,
    check_fraction,
    density_schedule,
    ops,
    uniform_first,
)

FINENESS = 6
"""Densities that an allocation may choose from, per factor of two."""


class GroupTopK(Sparsifier):
    """Base class of top-k: send the k largest elements of every group; of equal ones, those of lower index.

    Args:
        density: Share of each group's elements to send, in (0, 1].

    Raises:
        ValueError: if an option is out of range.
    """

    decides_by = "group"
    grouping = "layer"
    density_G: Tensor

    def __init__(self, *, density: float = 0.01, **options: Unpack[SparsifierOptions]) -> None:
        super().__init__(**options)
        self.density = check_fraction("density", density)

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        self.register_buffer(
            "density_G", torch.full((len(layout.groups),), self.density, dtype=torch.float64)
        )

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        groups = self.layout.groups
        counts = [num_kept(d, b - a) for (a, b), d in zip(groups, self.densities(), strict=True)]
        return ops.take_top(grad_N, residual_N, [0, *(stop for _, stop in groups)], counts, dtype=self.dtype)

    def densities(self) -> list[float]:
        """Density of each group at this step (G)."""
        densities: list[float] = self.density_G.tolist()
        return densities

    def report(self) -> dict[str, float]:
        sizes_G = torch.tensor([stop - start for start, stop in self.layout.groups], dtype=torch.float64)
        if not sizes_G.any():  # every tensor of the model is small and is sent dense
            return {"density_asked": self.density}
        asked_G = torch.tensor(self.densities(), dtype=torch.float64)
        return {"density_asked": float((asked_G * sizes_G).sum() / sizes_G.sum())}


class _Options(SparsifierOptions, AllocationOptions, total=False):
    """The options of `topk` besides the density."""


class TopK(Allocated, GroupTopK):
    """Send the k largest elements of every group by magnitude; of equal ones, those of lower index.

    Aji & Heafield send the elements above a threshold that is estimated from a sample. Sending exactly k
    elements of each layer, k = max(1, ⌊d·n⌋), is the utility study's TopK (Agarwal et al., MLSys 2022).

    With `allocation=lgreco` each group has its own density, one of 13 from d/2 to 2·d; what a setting loses
    is the rest of the signal beyond its k largest elements, and its bytes are those of values and indices
    without coding. With a `budget` d changes as under the schedule `budget` of `sage`, and all groups'
    densities with it: the budget decides how much is sent, and the allocation where.

    Args:
        density: Share of each group's elements to send, in (0, 1]; with a `budget`, at first.
        budget: Limit to which the density is adapted every ten steps, above 0, in the unit below; none: the
            density is constant. It depends on measured time, so a run with it is not bitwise reproducible.
        budget_unit: Unit of the budget: `bytes` that a rank may send per second, or `time`, seconds of
            communication per second of everything else.

    Raises:
        ValueError: if an option is out of range.
    """

    later = ALLOCATION | {"budget", "budget_unit"}

    def __init__(
        self,
        *,
        density: float = 0.01,
        budget: float | None = None,
        budget_unit: Literal["bytes", "time"] = "bytes",
        **options: Unpack[_Options],
    ) -> None:
        super().__init__(density=density, **options)
        if budget is not None and not 0 < budget < math.inf:
            raise ValueError(f"budget={budget!r}: expected a finite number above 0, or none")
        if budget_unit not in ("bytes", "time"):
            raise ValueError(f"budget_unit={budget_unit!r}: expected bytes or time")
        self.target: density_schedule.Budget | None = None
        if budget is not None:
            self.target = density_schedule.Budget(self.density, allowed=budget, unit=budget_unit)

    def densities(self) -> list[float]:
        scale = 1.0 if self.target is None else self.target.now() / self.density
        return [min(1.0, density * scale) for density in super().densities()]

    def learn(self, counts: list[int], mean_N: Tensor, wire: Wire) -> None:
        if self.target is not None:
            self.target.learn(mean_N, wire)

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        self.reallocate(self.density_G, grad_N, residual_N, wire)
        return super().take(grad_N, residual_N, wire)

    def settings_of(self, signal_N: Tensor) -> list[list[Setting]]:
        steps = range(-FINENESS, FINENESS + 1)
        densities = uniform_first(
            self.density, [min(1.0, self.density * 2 ** (step / FINENESS)) for step in steps]
        )
        scale = 1.0 if self.target is None else self.target.now() / self.density
        bytes_each = self.dtype.itemsize + 4
        found = []
        for start, stop in self.layout.groups:
            square_N = signal_N[start:stop].double().square()
            counts = [num_kept(min(1.0, density * scale), stop - start) for density in densities]
            top_K = square_N.topk(max(counts)).values.cumsum(0).cpu() if stop > start else square_N
            whole = float(square_N.sum())
            lost = [max(0.0, whole - float(top_K[k - 1])) if k < stop - start else 0.0 for k in counts]
            found.append(
                [Setting(d, e, bytes_each * k) for d, e, k in zip(densities, lost, counts, strict=True)]
            )
        return found

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if self.allocation is not None or self.target is not None:  # some steps send more than others
            return None
        return super().payload(counts, rank)


def num_kept(density: float, numel: int) -> int:
    """k = max(1, ⌊d·n⌋), and 0 if n = 0."""
    # Rounded to 12 digits first: 0.29·100 is 28.999999999999996 in binary floating point.
    return min(numel, max(1, int(round(density * numel, 12))))


REDUCER = TopK
