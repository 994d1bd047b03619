"""signSGD: majority vote over the ranks' signs, one bit per element (Bernstein et al., ICML 2018)."""
# N = elements of the vector, V = words, W = ranks

import torch
from torch import Tensor

from sage.reduction import Reduced, Reducer, Wire, all_finite, bitpacking, keep_error, ops, phase


class SignSgd(Reducer):
    """The result is sign(Σ_w sign(g_w)), 0 if the votes are tied.

    This is the paper's majority vote (Algorithm 3), and the utility study's SignSGD in its format. A zero
    votes +1, where the paper's sign(0) is 0. The result has magnitude 1 whatever the gradient's magnitude, so
    the learning rate has to be small. It is not the mean of what was sent, so conservation does not hold.
    With a residual, the residual keeps a − sign(a), which is in neither source; as signs have no scale, it
    helps little if gradients are far from 1 (see `efsignsgd`).

    Payload bytes per rank: 1 bit per element, in 4-byte words (`values`, in the format of
    `sage.reduction.coding.bitpacking.pack_signs_in_columns`), and 4 bytes that are NaN if the gradient is not
    finite, else 0 (`scales`): signs alone do not show it.
    """

    conserves = False
    rounds = True

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        n = grad_N.numel()
        with phase("select"):
            signal_N = ops.accumulate(grad_N, residual_N)
            words_V = bitpacking.pack_signs_in_columns(self.votes(signal_N))
            fault_1 = torch.where(all_finite(signal_N), 0.0, torch.nan).view(1)
            if residual_N is not None:
                keep_error(residual_N, bitpacking.unpack_signs_in_columns(words_V, n))
        words_WV, fault_W1 = wire.gather(values=words_V, scales=fault_1)
        with phase("scatter"):
            votes_N = grad_N.float().zero_()
            for words_V in words_WV:
                votes_N += bitpacking.unpack_signs_in_columns(words_V, n)
            return Reduced(grad_N.copy_(votes_N.sign_().add_(fault_W1.sum())))

    def votes(self, signal_N: Tensor) -> Tensor:
        """The vector whose signs are this rank's votes."""
        return signal_N

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return {"values": 4 * bitpacking.num_words(self.layout.numel), "scales": 4}


REDUCER = SignSgd
