"""Compares the ranks' copies of a model bit by bit, by checksums."""
# W = world size, P = number of tensors

import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

from sage.comm.agreement import format_ranks
from sage.comm.transport import Pending
from sage.comm.wire import Wire


class ReplicasDiffer(RuntimeError):
    """The ranks' copies of the model differ, so that the ranks no longer train the same model."""


class Replicas:
    """Tensors that should be bitwise identical on all ranks.

    Each rank computes one CRC-32 of all its tensors. An asynchronous sum of W integers, of which each rank
    sets its own, brings the checksums of all ranks to each rank. The wait for the other ranks overlaps with
    the work between `begin` and `finish`. If the checksums differ, the ranks also gather a CRC-32 of each of
    the P tensors, to find the first that differs.

    Args:
        wire: The communicator of the ranks that hold the copies.
        named: Names and tensors, in the same order on every rank, as from `model.named_parameters()`.
        shards: Number of neighbouring ranks that hold different shards of one copy; ranks that are multiples
            of it apart hold the same shard.
    """

    def __init__(self, wire: Wire, named: Iterable[tuple[str, Tensor]], *, shards: int = 1) -> None:
        self._wire, self.shards = wire, shards
        self._named = list(named)
        description = [(name, tensor.dtype, tensor.shape) for name, tensor in self._named]
        self._described = zlib.crc32(repr(description).encode())

    def check(self, when: str = "") -> None:
        """Compare the tensors, and wait for the result: `begin(when).finish()`."""
        self.begin(when).finish()

    def begin(self, when: str = "") -> "Comparison":
        """Start a comparison, a collective call; the tensors must not change before it is finished.

        Args:
            when: Start of the message, such as `step 120`.
        """
        crc = self._described
        for _, tensor in self._named:
            crc = zlib.crc32(_buffer(tensor), crc)
        crcs = [0] * self._wire.world_size
        crcs[self._wire.rank] = crc
        return Comparison(self, self._wire.begin_sum(torch.tensor(crcs)), when)

    def first_difference(self, reference: int, other: int) -> str:
        """Return the name of the first tensor that differs between two ranks; a collective call."""
        device = self._named[0][1].device if self._named else torch.device("cpu")
        crcs = [zlib.crc32(_buffer(x), zlib.crc32(f"{x.dtype} {x.shape}".encode())) for _, x in self._named]
        own_P = torch.tensor(crcs, dtype=torch.int64, device=device)
        counts, (crc_M,) = self._wire.gather_uneven(control=own_P)
        if len(set(counts)) == 1:
            rows = crc_M.view(self._wire.world_size, -1).tolist()
            for (name, _), ours, theirs in zip(self._named, rows[reference], rows[other], strict=True):
                if ours != theirs:
                    return name
        return "the set of tensors"


class Comparison:
    """A comparison that is under way; started by `Replicas.begin`."""

    def __init__(self, replicas: Replicas, pending: Pending, when: str) -> None:
        self._replicas, self._pending, self._when = replicas, pending, when

    def finish(self) -> None:
        """Wait for the checksums of all ranks, and compare them; a collective call.

        Raises:
            ReplicasDiffer: on every rank; the message gives the ranks that differ from the most common copy
                (or, in a tie, from that of the lowest rank) and the first tensor that differs.
        """
        all_W: list[int] = self._pending.wait().tolist()
        for shard in range(self._replicas.shards):
            crcs = dict(list(enumerate(all_W))[shard :: self._replicas.shards])
            if len(set(crcs.values())) > 1:
                self._fail(crcs)

    def _fail(self, crcs: dict[int, int]) -> NoReturn:
        # The most common checksum; in a tie, the one of the lowest rank.
        usual, _ = Counter(crcs.values()).most_common(1)[0]
        others = [rank for rank, crc in crcs.items() if crc != usual]
        reference = next(rank for rank, crc in crcs.items() if crc == usual)
        when = f"{self._when}: " if self._when else ""
        raise ReplicasDiffer(
            f"{when}the model of {format_ranks(others)} differs from that of rank {reference}, first in "
            f"{self._replicas.first_difference(reference, others[0])}. The ranks no longer train one model: "
            "the reducer returns another mean on each rank, a rank changed its parameters by itself, or the "
            "ranks' processors round differently"
        )


def _buffer(tensor: Tensor) -> Any:
    """Return the bytes of a tensor as an object with the buffer protocol."""
    plain = tensor.detach().cpu().contiguous()
    if plain.numel() == 0:
        return b""
    try:
        return plain.numpy()
    except TypeError:  # NumPy has no bfloat16, and no 8-bit floats
        return plain.view(-1).view(torch.uint8).numpy()
