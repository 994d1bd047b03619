"""signSGD: majority vote over the ranks' signs, one bit per element (Bernstein et al., ICML 2018)."""
# N = elements of the vector, V = words, W = ranks

import torch
from torch import Tensor

from sage.reduction import Reduced, Reducer, Wire, ops, phase


class SignSgd(Reducer):
    """The result is sign(Σ_w sign(g_w)), 0 if the votes are tied.

    This is the paper's majority vote (Algorithm 3), and the utility study's SignSGD in its format. A zero
    votes +1, where the paper's sign(0) is 0. The result has magnitude 1 for any gradient, so
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
        with phase("select"):
            bits_B, largest_1 = self.vote(grad_N, residual_N)
            words_V = ops.sign_words(bits_B, sizes, by_column=True)
            fault_1 = torch.where(largest_1.isfinite(), 0.0, torch.nan).float()
        words_WV, fault_W1 = wire.gather(values=words_V, scales=fault_1)
        with phase("scatter"):
            bytes_WB = ops.sign_bytes(words_WV, sizes, by_column=True)
            ops.mean_signs(grad_N, bytes_WB, sizes, fault_W1 - 1, fault_W1 + 1, divisor=1, votes=True)
            return Reduced(grad_N)

    def vote(self, grad_N: Tensor, residual_N: Tensor | None) -> tuple[Tensor, Tensor]:
        """This rank's votes (`sage.ops.sign_bits`), and the signal's largest magnitude (1 element).

        With a residual, the gradient is added to it, and it becomes the signal less the votes.
        """
        sizes, one_1 = [grad_N.numel()], grad_N.new_ones(1, dtype=torch.float32)
        largest_1 = ops.statistics(grad_N, residual_N, sizes, ops.Kind.LARGEST).largest_G
        signal_N = grad_N if residual_N is None else residual_N
        return ops.sign_bits(signal_N, sizes, -one_1, one_1, keep=residual_N is not None), largest_1

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        return {"values": 4 * ops.num_words(self.layout.numel), "scales": 4}


REDUCER = SignSgd
