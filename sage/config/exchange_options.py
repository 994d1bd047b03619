"""Options of optimisers whose ranks exchange what they step with, in place of gradients (`sage.optim`)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ..validate import LATER, Range
from .field_types import Count, Fraction


@dataclass(frozen=True, kw_only=True)
class ExchangeOptions:
    """Fields of a run's configuration that `Config` inherits."""

    # Optimisers that communicate
    freeze_step: Annotated[Count | None, LATER] = None
    """With --optimizer onebit-adam, zeroone-adam or onebit-lamb: step after which moments are frozen."""
    bias_correction: Annotated[bool, LATER] = False
    """With --optimizer onebit-adam: whether the moments are corrected, as in Adam."""
    var_update_scaler: Annotated[Count, LATER] = 16
    """With --optimizer zeroone-adam: updates of the second moment after which the gap between two doubles."""
    local_step_scaler: Annotated[Count, LATER] = 32678
    """With --optimizer zeroone-adam: local steps after which the gap between synchronisations doubles."""
    local_step_clipper: Annotated[Count, LATER] = 16
    """With --optimizer zeroone-adam: the largest gap between synchronisations."""
    demo_decay: Annotated[Fraction, LATER] = 0.999
    """With --optimizer demo: factor of each rank's momentum in every step."""
    demo_k: Annotated[Count, LATER] = 32
    """With --optimizer demo: number of coefficients that are sent of each tile."""
    demo_edge: Annotated[int, Range(1, 256), LATER] = 64
    """With --optimizer demo: largest edge of a tile, in elements."""
    demo_average: Annotated[bool, LATER] = False
    """With --optimizer demo: whether the momentum is a running average of the gradients."""
    demo_values: Annotated[Literal["bf16", "fp32"], LATER] = "bf16"
    """With --optimizer demo: precision in which coefficients are sent."""
    rank_fraction: Annotated[float, Range(0, 1, open="("), LATER] = 1.0
    """With --optimizer dion: rank of a matrix's factors as a fraction of its smaller dimension."""
