"""signSGD: the majority of the ranks' signs, one bit an element (Bernstein et al., ICML 2018)."""
# N = elements of the vector, V = words, W = ranks

import torch
from torch import Tensor

from sage.reduction import Reduced, Reducer, Wire, all_finite, bitpacking, keep_error, ops, phase


class SignSgd(Reducer):
    """The mean is sign(Σ_w sign(g_w)), 0 where the votes are tied.

    This is the paper's majority vote (algorithm 3), and the utility study's SignSGD in its format. A rank's
    zero votes +1, where the paper's sign(0) is 0. The result has magnitude 1 whatever the gradient's, so that
    the learning rate has to be small, and it is no mean of what was sent: nothing is conserved. With a memory
    the residual keeps a − sign(a), which is in neither source; as signs have no scale, it helps little where
    gradients are far from 1 (see `efsignsgd`).

    Bytes each rank hands over: a bit an element, in words of 4 bytes (`values`, laid out as in
    `sage.reduction.coding.bitpacking.pack_signs_in_columns`), and 4 that are NaN where the gradient is not
    finite, else 0 (`scales`): a sign alone would hide it.
    """

    conserves = False
    rounds = True

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        n = grad_N.numel()
        with phase("select"):
            signal_N = ops.accumulate(grad_N, residual_N)
            words_V = bitpacking.pack_signs_in_columns(self.opinion(signal_N))
            fault_1 = torch.where(all_finite(signal_N), 0.0, torch.nan).view(1)
            if residual_N is not None:
                keep_error(residual_N, bitpacking.unpack_signs_in_columns(words_V, n))
        words_WV, fault_W1 = wire.gather(values=words_V, scales=fault_1)
        with phase("scatter"):
            votes_N = grad_N.float().zero_()
            for words_V in words_WV:
                votes_N += bitpacking.unpack_signs_in_columns(words_V, n)
            return Reduced(grad_N.copy_(votes_N.sign_().add_(fault_W1.sum())))

    def opinion(self, signal_N: Tensor) -> Tensor:
        """The vector whose signs are this rank's votes."""
        return signal_N

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return {"values": 4 * bitpacking.num_words(self.layout.numel), "scales": 4}


REDUCER = SignSgd
