"""QSGD: rounds each element at random to a multiple of its bucket's norm / s (Alistarh et al., NIPS 2017)."""
# N = elements of the vector, B = bytes of codes, P = buckets, W = payloads

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Literal, Unpack

import torch
from torch import Tensor

from sage.reduction import (
    ALLOCATION,
    Allocated,
    AllocationOptions,
    Layout,
    Parts,
    Reduced,
    RoundingOptions,
    Setting,
    Wire,
    ops,
    uniform_first,
)

from .dithering import NORMS, Dithering, Norm


class _Options(RoundingOptions, AllocationOptions, total=False):
    """The options of `qsgd` besides those of the quantiser."""


@dataclass(frozen=True)
class Run:
    """Neighbouring groups with the same number of levels."""

    coding: ops.Coding
    sizes: list[int]
    """Number of elements of each of the groups."""
    start: int
    stop: int
    """Its elements are [start, stop) of the vector."""


class Qsgd(Allocated, Dithering):
    """As `dithering`, with QSGD's quantiser: linear levels of the norm of a bucket.

    Q_s(v) = ‖v‖₂·sign(v)·ξ, where ξ is one of the two of s levels around |v|/‖v‖₂, drawn so that the
    expectation is v (section 3.1 of the paper). Buckets and the norm `max`, whose levels are closer together,
    are the paper's too. The defaults are ours: 4 bits per element and 4 bytes per bucket of 128 (GRACE has s
    = 127). The paper's own code is Elias' recursive code, which is not offered; `elias` here is BytePS's
    stream.

    With `allocation=lgreco` each group has its own number of levels, the most that a code of b bits has,
    2^(b−1) − 1, where b is from half to twice the bits of `levels`, and at most 8. What a number of levels
    loses is the variance of the rounding. It needs `coding=packed` and `partition=linear`; the codes of
    neighbouring groups with the same number of levels fill whole bytes together.

    Args:
        levels: Number of levels s above 0, from 1 to 127: 7 take 4 bits per element, 127 take 8.
        norm: Norm that elements are divided by: the largest magnitude (`max`), or Euclidean (`l2`).
        bucket: Number of elements that share a norm, 1 or more; none: all elements of a group.
    """

    later = ALLOCATION
    level_G: Tensor

    def __init__(
        self,
        *,
        levels: int = 7,
        norm: Norm = "l2",
        bucket: int | None = 128,
        coding: Literal["packed", "elias"] = "packed",
        **options: Unpack[_Options],
    ) -> None:
        super().__init__(levels=levels, norm=norm, bucket=bucket, coding=coding, **options)
        if self.allocation is not None and (coding != "packed" or self.coding.codec is not ops.Codec.LINEAR):
            raise ValueError(
                f"allocation='lgreco' with coding={coding!r}: expected coding='packed', partition='linear'"
            )

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        if self.allocation is not None:
            levels = torch.full((len(layout.groups),), float(self.coding.levels), dtype=torch.float64)
            self.register_buffer("level_G", levels)

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if self.allocation is not None:
            self.reallocate(self.level_G, grad_N, residual_N, wire)
        return super().forward(grad_N, residual_N, wire)

    def settings_of(self, signal_N: Tensor) -> list[list[Setting]]:
        bits = self.coding.bits
        some = [float((1 << b - 1) - 1) for b in range(max(2, -(-bits // 2)), min(8, 2 * bits) + 1)]
        codings = [self._coding(levels) for levels in uniform_first(self.coding.levels, some)]
        return [
            [Setting(coding.levels, *self._cost(signal_N[start:stop], coding)) for coding in codings]
            for start, stop in self.layout.groups
        ]

    def _cost(self, x_N: Tensor, coding: ops.Coding) -> tuple[float, int]:
        """Variance of the rounding of a group, summed over its elements, and bytes."""
        n = x_N.numel()
        if n == 0:
            return 0.0, 0
        bucket = min(coding.bucket or n, n)
        x_Pb = torch.nn.functional.pad(x_N.double().abs(), (0, -n % bucket)).view(-1, bucket)
        norm_P1 = x_Pb.amax(1, keepdim=True) if self._norm == "max" else x_Pb.norm(dim=1, keepdim=True)
        unit_P1 = norm_P1 / coding.levels
        part_Pb = torch.where(unit_P1 > 0, x_Pb / unit_P1, 0).frac()  # between two levels
        variance = float((unit_P1.square() * part_Pb * (1 - part_Pb)).sum())
        return variance, coding.num_bytes(n) + 4 * coding.num_buckets([n])

    def _coding(self, levels: float) -> ops.Coding:
        return ops.Coding(self.coding.codec, int(levels), self.coding.bucket)

    def _runs(self, sizes: Sequence[int]) -> list[Run]:
        """The groups by their number of levels."""
        bounds = list(accumulate(sizes, initial=0))
        level_G, runs, first = self.level_G.tolist(), list[Run](), 0
        for levels, same in groupby(level_G):
            after = first + len(list(same))
            runs.append(Run(self._coding(levels), list(sizes[first:after]), bounds[first], bounds[after]))
            first = after
        return [run for run in runs if run.stop > run.start]

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        if self.allocation is None:
            return super().compress(grad_N, residual_N, sizes, wire)
        key, positions = self.next_key(wire), self.positions(grad_N)
        codes, norms = [grad_N.new_empty(0, dtype=torch.uint8)], [grad_N.new_empty(0, dtype=torch.float32)]
        for run in self._runs(sizes):
            part = slice(run.start, run.stop)
            codes_B, norm_P = ops.quantise(
                grad_N[part],
                None if residual_N is None else residual_N[part],
                run.sizes,
                run.coding,
                norm=NORMS[self._norm],
                key=key,
                positions=positions.part(run.start, run.stop),
            )
            codes.append(codes_B)
            norms.append(norm_P)
        return {"values": torch.cat(codes), "scales": torch.cat(norms)}

    def average(
        self,
        out_N: Tensor,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        *,
        divisor: int,
        added: bool = False,
    ) -> Tensor:
        if self.allocation is None:
            return super().average(out_N, rows, sizes, divisor=divisor, added=added)
        runs = self._runs(sizes)
        num_bytes = [run.coding.num_bytes(run.stop - run.start) for run in runs]
        num_buckets = [run.coding.num_buckets(run.sizes) for run in runs]
        codes, norms = rows["values"].split(num_bytes, dim=1), rows["scales"].split(num_buckets, dim=1)
        for run, codes_WB, norm_WP in zip(runs, codes, norms, strict=True):
            ops.average(
                out_N[run.start : run.stop],
                codes_WB.contiguous(),
                norm_WP.contiguous(),
                run.sizes,
                run.coding,
                divisor=divisor,
                added=added,
            )
        return out_N

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int] | None:
        return super().bytes_of(sizes) if self.allocation is None else None

    def report(self) -> dict[str, float]:
        if self.allocation is None or not self.sizes:
            return {}
        bits = [self._coding(levels).bits for levels in self.level_G.tolist()]
        weighted = sum(b * n for b, n in zip(bits, self.sizes, strict=True))
        return {"mean_bits": weighted / max(1, sum(self.sizes))}


REDUCER = Qsgd
