"""The 1-bit all-reduce of 1-bit Adam: signs and scales both ways, with an error for each way."""
# N = elements of the vector, C = elements of a chunk, S = of this rank's chunk, G = groups, P = parts of
# groups in a chunk, W = ranks

from collections.abc import Sequence

import torch
from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.quantise import counts_of
from sage.timing import phase


class OneBitAllReduce:
    """Replaces a vector by its mean over ranks, of which each way carries one bit per element.

    With worker error e_i and server error e, both 0 at first, for each group of n elements:

        b = x_i + e_i,  s_i = ‖b‖₂/√n,  e_i ← b − s_i·sign(b)       on each rank i, the worker
        c = mean over i of s_i·sign(b) + e                          on the rank whose chunk it is, the server
        s = ‖c‖₂/√n,  e ← c − s·sign(c),  x ← s·sign(c)             in parts of groups, cut at chunks

    The sign of 0 is 1. The vector is cut into W chunks of C = 8·⌈N/8W⌉ elements, of which the last ones are
    shorter or empty; every rank is the server of one chunk. What each rank passes to collectives: W·C/8 bytes
    of signs to the servers (`values`, all-to-all) and 4 bytes a group (`scales`, all-gather), then C/8 bytes
    of signs of its chunk (`values`, all-gather) and 4 bytes a part, as many as the chunk with the most parts
    has (`scales`). A rank sends (W − 1)·C/8 bytes of signs each way, about N/8.

    Source: Tang et al., "1-bit Adam: Communication Efficient Large-Scale Training with Adam's Convergence
    Speed", 2021, https://arxiv.org/abs/2102.02888, whose text was not at hand; this follows the order of the
    operations in DeepSpeed (commit edaa72212, runtime/comm/nccl.py), which has one group.

    Args:
        sizes: Number of elements of each group; they sum to N.
        worker_N: Memory of the worker error.
        server_S: Memory of the server error of this rank's chunk: `share_of(...)` elements.
        wire: The communicator.
    """

    def __init__(self, sizes: Sequence[int], worker_N: Tensor, server_S: Tensor, wire: Wire) -> None:
        self._sizes = [size for size in sizes if size]
        self._worker_N, self._server_S, self._wire = worker_N, server_S, wire
        self._chunk = chunk_of(sum(sizes), wire.world_size)
        self._groups, self._shares = cut(self._sizes, self._chunk, wire.world_size)
        assert sum(self._shares[wire.rank]) == server_S.numel()

    def __call__(self, x_N: Tensor) -> Tensor:
        """Replace x_N by its mean, the same on all ranks to the bit, and update the errors; returns x_N."""
        wire = self._wire
        with phase("select"):
            self._worker_N.add_(x_N)
            scale_G = _scales(self._worker_N, self._sizes)
            bits = ops.sign_bits(self._worker_N, self._sizes, -scale_G, scale_G, keep=True)
            bits_WB = bits.new_zeros(wire.world_size * self._chunk // 8)
            bits_WB[: bits.numel()] = bits
        received_WB = wire.all_to_all(bits_WB.view(wire.world_size, -1), "values")
        (scale_WG,) = wire.gather(scales=scale_G)
        with phase("scatter"):
            bits, scale_P = self._serve(received_WB, scale_WG)
        most = max(map(len, self._shares))
        bits_WB, scale_WP = wire.gather_rows(
            {"values": self._chunk // 8, "scales": most}, values=bits, scales=scale_P
        )
        with phase("scatter"):
            scales = [row_P[: len(part)] for row_P, part in zip(scale_WP, self._shares, strict=True)]
            scale_P = torch.cat(scales)
            bits = bits_WB.reshape(1, -1)[:, : -(-x_N.numel() // 8)].contiguous()
            sizes = [size for part in self._shares for size in part]
            return ops.mean_signs(x_N, bits, sizes, -scale_P[None], scale_P[None], divisor=1)

    def _serve(self, received_WB: Tensor, scale_WG: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signs and the scales of the mean of this rank's chunk, and update the server error."""
        rank, server_S = self._wire.rank, self._server_S
        share = self._shares[rank]
        if not share:
            return received_WB.new_empty(0), scale_WG.new_empty(0)
        scale_WP = scale_WG[:, self._groups[rank]].contiguous()
        bits_WB = received_WB[:, : -(-server_S.numel() // 8)].contiguous()
        mean_S = torch.empty_like(server_S)
        divisor = self._wire.world_size
        server_S.add_(ops.mean_signs(mean_S, bits_WB, share, -scale_WP, scale_WP, divisor=divisor))
        scale_P = _scales(server_S, share)
        return ops.sign_bits(server_S, share, -scale_P, scale_P, keep=True), scale_P


def chunk_of(numel: int, world_size: int) -> int:
    """Number of elements of each rank's chunk, a multiple of 8, so that chunks begin at whole bytes."""
    return 8 * -(-numel // (8 * world_size))


def share_of(numel: int, rank: int, world_size: int) -> int:
    """Number of elements in the chunk of a rank.

    >>> [share_of(19, rank, 3) for rank in range(3)]
    [8, 8, 3]
    """
    chunk = chunk_of(numel, world_size)
    return max(0, min(chunk, numel - rank * chunk))


def cut(sizes: Sequence[int], chunk: int, world_size: int) -> tuple[list[list[int]], list[list[int]]]:
    """Cut groups at the borders of chunks: the number and the size of each part, by chunk.

    >>> cut([3, 9, 5], 8, 3)
    ([[0, 1], [1, 2], [2]], [[3, 5], [4, 4], [1]])
    """
    groups: list[list[int]] = [[] for _ in range(world_size)]
    shares: list[list[int]] = [[] for _ in range(world_size)]
    start = 0
    for number, size in enumerate(sizes):
        stop = start + size
        while start < stop:
            rank = start // chunk
            part = min(stop, (rank + 1) * chunk) - start
            groups[rank].append(number)
            shares[rank].append(part)
            start += part
    return groups, shares


def _scales(x_N: Tensor, sizes: Sequence[int]) -> Tensor:
    """‖x‖₂/√n of each group (float32)."""
    sum_G = ops.statistics(x_N, None, sizes, ops.Kind.SQUARES).sum_G
    return (sum_G / counts_of(sizes, sum_G)).sqrt().float()
