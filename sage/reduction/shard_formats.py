"""Formats in which FSDP2's collectives send numbers between shards: what is sent of a row, and its values."""
# W = rows, one for each rank, S = elements of a row, P = blocks of a row, B = bytes of a row's codes

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sage import ops
from sage.rng import seed_at

Rows = dict[str, Tensor]
"""What is sent, by kind of the ledger (`shards`, `shard_scales`): one row for each receiver or sender."""

VALUES, SCALES = "shards", "shard_scales"

ReduceFormat = Literal["exact", "bf16", "fp8", "int8", "int4", "loco", "sdp4bit"]
GatherFormat = Literal["exact", "bf16", "fp8", "int8", "sdp4bit"]

BLOCK = 256
"""Elements that share a scale, by default."""


class Format:
    """A format of numbers; those of one rank's row are sent to one rank."""

    def encode(self, x_WS: Tensor, step: int, rank: int) -> Rows:
        """Encode rows (float32).

        Args:
            x_WS: One row for each receiver. A number that is not finite makes its block, or itself if there
                are no blocks, not finite when it is decoded.
            step: Number of the step, from 1 on, and
            rank: this rank: random rounding depends on both.
        """
        raise NotImplementedError

    def total(self, rows: Mapping[str, Tensor], out_S: Tensor, divisor: int) -> Tensor:
        """Decode rows, add them in their order in float32, divide, and return the result in out_S."""
        raise NotImplementedError

    def decode(self, rows: Mapping[str, Tensor], length: int) -> Tensor:
        """Decode each row to `length` numbers (float32, W × S)."""
        first = next(iter(rows.values()))
        out_WS = torch.empty(len(first), length, device=first.device)
        for row, out_S in enumerate(out_WS):
            self.total({kind: part_W[row : row + 1] for kind, part_W in rows.items()}, out_S, 1)
        return out_WS

    def num_bytes(self, length: int) -> dict[str, int]:
        """Bytes of a row of this length, by kind."""
        raise NotImplementedError


class Bfloat16(Format):
    """bfloat16 numbers: 2 bytes each, |error| ≤ 2⁻⁸·|x|; their sum is in float32."""

    def encode(self, x_WS: Tensor, step: int, rank: int) -> Rows:
        return {VALUES: x_WS.bfloat16()}

    def total(self, rows: Mapping[str, Tensor], out_S: Tensor, divisor: int) -> Tensor:
        out_S.zero_()
        for x_S in rows[VALUES]:
            out_S += x_S
        return out_S.div_(divisor)

    def num_bytes(self, length: int) -> dict[str, int]:
        return {VALUES: 2 * length}


class Blocks(Format):
    """Codes with a scale for each block, its largest magnitude s (float32, 4 bytes).

    `fp8`: the nearest 8-bit float (e4m3) to x·448/s. `int8`: the nearest multiple of s/127, so that |error| ≤
    s/254. Both take 1 byte for each number. Each row begins a new block.

    Args:
        codec: Codes of 8 bits that are not rounded at random.
        block: Number of elements that share a scale.
    """

    def __init__(self, codec: ops.Codec, block: int) -> None:
        self.coding = ops.Coding(codec, bucket=block)

    def encode(self, x_WS: Tensor, step: int, rank: int) -> Rows:
        return self._rows(x_WS, *ops.quantise(x_WS.reshape(-1), None, self._sizes(x_WS), self.coding))

    def total(self, rows: Mapping[str, Tensor], out_S: Tensor, divisor: int) -> Tensor:
        return ops.average(out_S, rows[VALUES], rows[SCALES], [out_S.numel()], self.coding, divisor=divisor)

    def num_bytes(self, length: int) -> dict[str, int]:
        return {VALUES: self.coding.num_bytes(length), SCALES: 4 * self.coding.num_buckets([length])}

    @staticmethod
    def _sizes(x_WS: Tensor) -> list[int]:
        return [x_WS.shape[1]] * len(x_WS)

    @staticmethod
    def _rows(x_WS: Tensor, codes_B: Tensor, scale_P: Tensor) -> Rows:
        return {VALUES: codes_B.view(len(x_WS), -1), SCALES: scale_P.view(len(x_WS), -1)}


class Int4(Blocks):
    """Symmetric 4-bit integers: the nearest multiple of s/7, where s is the largest magnitude in the block.

    The quantiser of ZeRO++'s qgZ (Wang et al., 2023, https://arxiv.org/abs/2306.10209). Two codes in a byte;
    |error| ≤ s/14.

    Args:
        block: Number of elements that share a scale.
    """

    LEVELS = 7

    def __init__(self, block: int) -> None:
        self.coding = ops.Coding(ops.Codec.LINEAR, self.LEVELS, bucket=block)

    def encode(self, x_WS: Tensor, step: int, rank: int) -> Rows:
        num, length = x_WS.shape
        assert self.coding.bucket is not None
        block = min(self.coding.bucket, length)
        x_WPK = F.pad(x_WS, (0, -length % block)).view(num, -1, block)
        scale_WP = x_WPK.abs().amax(2)  # NaN if a number is
        unit_WPK = (x_WPK / scale_WP[:, :, None]).nan_to_num_(0.0, 0.0, 0.0)  # 0 / 0 in a block of zeros
        code_WS = unit_WPK.mul_(self.LEVELS).round_().view(num, -1)[:, :length]
        even_WS = F.pad(code_WS, (0, length % 2)).add_(self.LEVELS)  # a row ends with a byte
        bytes_B = ops.pack(even_WS.to(torch.uint8).view(-1), 4)
        return {VALUES: bytes_B.view(num, -1), SCALES: scale_WP}


class RandomLevels(Blocks):
    """Multiples of s/levels, rounded at random to one of the two neighbours, so that they are unbiased.

    |error| < s/levels. Rows must have an even number of elements if there are 7 levels, in 4 bits.

    Args:
        levels: Levels above 0: 7 in 4 bits, 127 in 8 bits.
        block: Number of elements that share a scale.
        seed: Seed of the random rounding, with the step and the rank.
    """

    def __init__(self, levels: int, block: int, seed: int) -> None:
        self.coding = ops.Coding(ops.Codec.LINEAR, levels, bucket=block)
        self._seed = seed

    def encode(self, x_WS: Tensor, step: int, rank: int) -> Rows:
        key = seed_at(self._seed, step, rank, self.coding.levels)
        flat_N, sizes = x_WS.reshape(-1), self._sizes(x_WS)
        return self._rows(x_WS, *ops.quantise(flat_N, None, sizes, self.coding, key=key))


def by_name(name: str, block: int) -> Format:
    """Return a format that the reduce-scatter and the all-gather share: bf16, fp8 or int8."""
    codecs = {"fp8": ops.Codec.E4M3, "int8": ops.Codec.INT8}
    return Blocks(codecs[name], block) if name in codecs else Bfloat16()
