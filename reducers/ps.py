"""Parameter server: rank 0 gathers, averages and broadcasts; no compression (Li et al., OSDI 2014)."""
# N = elements of the flat vector, W = ranks

from torch import Tensor

from sage.reduction import Reduced, Reducer, Wire, add, phase


class Ps(Reducer):
    """Mean over ranks as a parameter server computes it (Li et al., OSDI 2014), with rank 0 as the server.

    This is the communication pattern of the utility study's ExactPs (Agarwal et al., 2022). That code does
    not divide the sum by W and does not return the mean; these faults are not copied. The mean is that of
    `exact`.

    Payload bytes per rank: 4 per element, as with `exact`; rank 0 passes them to the broadcast, the others to
    the gather. The traffic on the links differs: rank 0 receives W − 1 gradients and sends the mean to ⌈log2
    W⌉ ranks, which forward it; see
    `docs/explanation/ledger.md`.
    """

    decides_by = "element"
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
