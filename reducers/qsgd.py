"""QSGD: each element rounded at random to one of s levels of its bucket's norm (Alistarh et al., 2017)."""

from typing import Literal, Unpack

from sage.coding.levels import Norm
from sage.coding.quantise import Rounding

from .dithering import Dithering


class Qsgd(Dithering):
    """As `dithering`, by the paper: Q_s(v) = ‖v‖₂·sign(v)·ξ, ξ one of the s levels around |v|/‖v‖₂ (3.1).

    By default 4 bits an element, and 4 bytes a bucket of 128. With norm `max` levels lie closer. The paper's
    own coding is Elias' recursive one; `elias` here is BytePS's stream.

    Args:
        levels: s, from 1 to 127: 7 take 4 bits, 127 take 8.
        norm: By which elements are divided: of the largest magnitude (`max`), or Euclidean (`l2`).
        bucket: Elements that share a norm, 1 or more; none: all of a group.
    """

    def __init__(
        self,
        *,
        levels: int = 7,
        norm: Norm = "l2",
        bucket: int | None = 128,
        coding: Literal["packed", "elias"] = "packed",
        **rounding: Unpack[Rounding],
    ) -> None:
        super().__init__(levels=levels, norm=norm, bucket=bucket, coding=coding, **rounding)


REDUCER = Qsgd
