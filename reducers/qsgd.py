"""QSGD: each element rounded at random to one of s levels of its bucket's norm (Alistarh et al., 2017)."""

from typing import Literal, Unpack

from sage.reduction import Norm, Rounding

from .dithering import Dithering


class Qsgd(Dithering):
    """As `dithering`, with the quantiser of QSGD: linear levels of the norm of a bucket.

    Q_s(v) = ‖v‖₂·sign(v)·ξ, with ξ one of the two of s levels around |v|/‖v‖₂, so that the mean is v (section
    3.1 of the paper). Buckets and the norm `max`, by which levels lie closer, are the paper's too. The
    defaults are ours: 4 bits an element, and 4 bytes a bucket of 128 (GRACE has s = 127). The paper's own
    code is Elias' recursive one, which is not offered; `elias` here is BytePS's stream.

    Args:
        levels: s, from 1 to 127: 7 take 4 bits, 127 take 8.
        norm: The norm that elements are divided by: the largest magnitude (`max`), or Euclidean (`l2`).
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
