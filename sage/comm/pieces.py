"""Collectives on a vector that is cut into one piece for each rank, of any lengths."""
# W = world size, N = elements of the vector, S = of a piece

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.comm.ledger import ring_ragged_gather
from sage.comm.packing import add_into_first, describe, num_bytes, pack
from sage.comm.wire import Wire


def scatter_sum(wire: Wire, x_N: Tensor, lengths: Sequence[int], kind: str = "values") -> Tensor:
    """Return this rank's piece of the sum over ranks of x_N.

    The pieces are exchanged (all-to-all) and added in rank order, 16-bit numbers in float32. The result is
    overwritten by the next such call.

    Args:
        wire: The communicator of the W ranks.
        x_N: The vector.
        lengths: Number of elements of each piece, the same on all ranks.
        kind: The kind of its bytes.
    """
    own, item = lengths[wire.rank], x_N.element_size()
    rows_WS = wire.scratch.take(f"scatter_sum {kind}", (wire.world_size, own), x_N)
    sizes = [[length * item for length in lengths]] * wire.world_size

    def run() -> Tensor:
        wire._all_to_all_ragged(pack([x_N]), sizes, rows_WS.view(-1).view(torch.uint8))
        return add_into_first(rows_WS)

    traffic = (num_bytes(x_N) - own * item, (wire.world_size - 1) * own * item)
    call = describe("scatter_sum", **{kind: x_N})
    return wire._collective(call, {kind: num_bytes(x_N)}, traffic, run)


def gather_pieces(wire: Wire, x_N: Tensor, lengths: Sequence[int], kind: str = "values") -> Tensor:
    """Give every rank piece r of x_N from rank r, in place; the arguments are those of `scatter_sum`."""
    sizes = [length * x_N.element_size() for length in lengths]
    wire._collective(
        describe("gather_pieces", **{kind: x_N}),
        {kind: sizes[wire.rank]},
        ring_ragged_gather(sizes, wire.rank),
        lambda: wire._fill(x_N.split(list(lengths))),
    )
    return x_N
