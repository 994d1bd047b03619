"""Compares the ranks' copies of a model bit by bit, by a checksum of each tensor."""
# W = world size, P = number of tensors

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sage.comm.agreement import told_ranks
from sage.comm.wire import Wire


class ReplicasDiffer(RuntimeError):
    """The ranks' copies of the model differ, so that the ranks no longer train the same model."""


def check_replicas(
    wire: Wire, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], *, when: str = ""
) -> None:
    """Compare tensors that should be bitwise identical on all ranks. This is a collective call.

    Each rank computes a CRC-32 of every tensor, and gathers an 8-byte checksum of all of them. If these
    differ, the ranks also gather the P checksums, to find the first tensor that differs.

    Args:
        wire: The communicator of the ranks that hold the copies.
        tensors: The tensors by name, in the same order on every rank, as from `model.named_parameters()`.
        when: Start of the message, such as `step 120`.

    Raises:
        ReplicasDiffer: on every rank; the message gives the ranks that differ from the most common copy (or,
            in a tie, from that of the lowest rank) and the first tensor that differs.
    """
    named = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
    crc_P = [_checksum(tensor) for _, tensor in named]
    device = named[0][1].device if named else torch.device("cpu")
    whole = zlib.crc32(repr([(name, crc) for (name, _), crc in zip(named, crc_P, strict=True)]).encode())
    (whole_W,) = wire.gather(control=torch.tensor(whole, device=device))
    all_W: list[int] = whole_W.tolist()
    if len(set(all_W)) == 1:
        return
    # The most common checksum; in a tie, the one of the lowest rank.
    usual, _ = Counter(all_W).most_common(1)[0]
    others = [rank for rank, each in enumerate(all_W) if each != usual]
    _, (crc_M,) = wire.gather_uneven(control=torch.tensor(crc_P, dtype=torch.int64, device=device))
    rows = crc_M.view(wire.world_size, -1).cpu() if crc_M.numel() == wire.world_size * len(named) else None
    first = "the set of tensors"
    if rows is not None:
        differs_P = (rows[others[0]] != rows[all_W.index(usual)]).tolist()
        first = next((name for (name, _), differs in zip(named, differs_P, strict=True) if differs), first)
    raise ReplicasDiffer(
        f"{when + ': ' if when else ''}the model of {told_ranks(others)} differs from that of rank "
        f"{all_W.index(usual)}, first in {first}. The ranks no longer train one model: the reducer returns "
        "another mean on each rank, a rank changed its parameters by itself, or the ranks' processors round "
        "differently"
    )


def _checksum(tensor: Tensor) -> int:
    """Return a CRC-32 of a tensor's bytes, dtype and shape."""
    start = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if tensor.numel() == 0:
        return start
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return zlib.crc32(flat.numpy().data, start)
