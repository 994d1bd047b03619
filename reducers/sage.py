"""SAGE: a threshold that moves every step to steer the density to its target (kljp/sage)."""
# N = elements of the flat vector

import math
from typing import Literal

from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.controller import SageController
from sage.reduce import Sparsifier, check_fraction


class Sage(Sparsifier):
    """Send |a| ≥ λ_t, where a controller on each rank moves λ_t by what it sees of the signal.

    Density 1 bypasses the controller and sends everything.

    Args:
        density: Target share of the elements to send, in (0, 1].
        threshold: λ_0, above 0; by default 1/(2·sqrt(density·n)).
        controller: The rule that moves λ: `sage`, as published.
        values: Precision in which values travel.
        sample_seed: Of the controller's sample of the signal.
    """

    even = False

    def __init__(
        self,
        *,
        density: float = 0.01,
        threshold: float | None = None,
        controller: Literal["sage"] = "sage",
        values: Literal["fp32", "fp16"] = "fp32",
        sample_seed: int = 0,
    ) -> None:
        super().__init__(values=values)
        if threshold is not None and not 0 < threshold < math.inf:
            raise ValueError(f"threshold={threshold!r}: expected a finite number above 0")
        if controller != "sage":
            raise ValueError(f"controller={controller!r}: expected sage")
        self.density = check_fraction("density", density)
        self.controller = SageController(density=self.density, threshold=threshold, seed=sample_seed)

    def select(self, signal_N: Tensor, wire: Wire) -> Tensor:
        return ops.select_above(signal_N, 0.0 if self.density == 1 else self.controller.decide(signal_N))

    def report(self) -> dict[str, float]:
        return {"density_asked": self.density, "threshold": float(self.controller.threshold)}


REDUCER = Sage
