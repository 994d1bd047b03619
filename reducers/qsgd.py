"""QSGD: rounds each element at random to a multiple of its bucket's norm / s (Alistarh et al., NIPS 2017)."""

from typing import Literal, Unpack

from sage.reduction import RoundingOptions

from .dithering import Dithering, Norm


class Qsgd(Dithering):
    """As `dithering`, with QSGD's quantiser: linear levels of the norm of a bucket.

    Q_s(v) = ‖v‖₂·sign(v)·ξ, where ξ is one of the two of s levels around |v|/‖v‖₂, drawn so that the
    expectation is v (section 3.1 of the paper). Buckets and the norm `max`, whose levels are closer together,
    are the paper's too. The defaults are ours: 4 bits per element and 4 bytes per bucket of 128 (GRACE has s
    = 127). The paper's own code is Elias' recursive code, which is not offered; `elias` here is BytePS's
    stream.

    Args:
        levels: Number of levels s above 0, from 1 to 127: 7 take 4 bits per element, 127 take 8.
        norm: Norm that elements are divided by: the largest magnitude (`max`), or Euclidean (`l2`).
        bucket: Number of elements that share a norm, 1 or more; none: all elements of a group.
    """

    def __init__(
        self,
        *,
        levels: int = 7,
        norm: Norm = "l2",
        bucket: int | None = 128,
        coding: Literal["packed", "elias"] = "packed",
        **rounding: Unpack[RoundingOptions],
    ) -> None:
        super().__init__(levels=levels, norm=norm, bucket=bucket, coding=coding, **rounding)


REDUCER = Qsgd
