"""Parameter server: rank 0 gathers every gradient, takes the mean, and broadcasts it; nothing compressed."""
# N = elements of the flat vector, W = ranks

from torch import Tensor

from sage.reduction import Reduced, Reducer, Wire, add, phase


class Ps(Reducer):
    """The mean over ranks as a parameter server computes it (Li et al., OSDI 2014), rank 0 being the server.

    It is the pattern of the utility study's ExactPs (Agarwal et al., 2022), whose code does not divide the
    sum by W and does not hand the mean back, faults that are not copied. The mean is that of `exact`, and so
    are the bytes each rank hands over: 4 an element, those of rank 0 to the broadcast, those of the others to
    the gather. The links differ: rank 0 receives W − 1 gradients and sends the mean to ⌈log2 W⌉ ranks, which
    forward it; see `docs/explanation/ledger.md`.
    """

    spares_small = False

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if residual_N is not None:
            grad_N += residual_N
            residual_N.zero_()
        all_WN = wire.gather_to(grad_N, root=0)
        if wire.rank == 0:
            with phase("scatter"):
                grad_N.copy_(add(all_WN)).div_(wire.world_size)
        return Reduced(wire.broadcast(grad_N, root=0))

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return {"values": 4 * counts[rank]}


REDUCER = Ps
