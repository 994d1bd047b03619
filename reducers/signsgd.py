"""signSGD: majority vote over the ranks' signs, one bit per element (Bernstein et al., ICML 2018)."""
# N = elements of the vector, V = words, W = ranks

import torch
from torch import Tensor

from sage.reduction import Reduced, Reducer, Wire, ops, phase


class SignSgd(Reducer):
    """The result is sign(Σ_w sign(g_w)), 0 if the votes are tied.

    This is the paper's majority vote (Algorithm 3), and the utility study's SignSGD in its format. A zero
    votes +1, where the paper's sign(0) is 0. The result has magnitude 1 whatever the gradient's magnitude, so
    the learning rate has to be small. It is not the mean of what was sent, so conservation does not hold.
    With a residual, the residual keeps a − sign(a), which is in neither source; as signs have no scale, it
    helps little if gradients are far from 1 (see `efsignsgd`).

    Payload bytes per rank: 1 bit per element, in 4-byte words (`values`, in the format of
    `sage.ops.sign_words` by column), and 4 bytes that are NaN if the gradient is not
    finite, else 0 (`scales`): signs alone do not show it.
    """

    decides_by = "element"
    conserves = False
    rounds = True

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        sizes = [grad_N.numel()]
        ones_11 = grad_N.new_ones((1, 1), dtype=torch.float32)
        with phase("select"):
            largest_1 = ops.statistics(grad_N, residual_N, sizes, ops.Kind.LARGEST).largest_G
            signal_N = grad_N if residual_N is None else residual_N
            votes_N = self.votes(signal_N)
            keep = residual_N is not None and votes_N is residual_N
            bits_B = ops.sign_bits(votes_N, sizes, -ones_11[0], ones_11[0], keep=keep)
            if residual_N is not None and not keep:
                ops.mean_signs(residual_N, bits_B[None], sizes, ones_11, -ones_11, divisor=1, added=True)
                residual_N.nan_to_num_(0.0, 0.0, 0.0)
            words_V = ops.sign_words(bits_B, sizes, by_column=True)
            fault_1 = torch.where(largest_1.isfinite(), 0.0, torch.nan).float()
        words_WV, fault_W1 = wire.gather(values=words_V, scales=fault_1)
        with phase("scatter"):
            bytes_WB = ops.sign_bytes(words_WV, sizes, by_column=True)
            ops.mean_signs(grad_N, bytes_WB, sizes, fault_W1 - 1, fault_W1 + 1, divisor=1, votes=True)
            return Reduced(grad_N)

    def votes(self, signal_N: Tensor) -> Tensor:
        """The vector whose signs are this rank's votes."""
        return signal_N

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return {"values": 4 * ops.num_words(self.layout.numel), "scales": 4}


REDUCER = SignSgd
