"""EF-SignSGD: sends signs and the mean magnitude of each layer (Karimireddy et al., ICML 2019)."""
# N = elements of the vector, G = groups

from collections.abc import Sequence

from torch import Tensor

from sage.reduction import Parts, SignQuantiser, Wire, counts_of, ops


class EfSignSgd(SignQuantiser):
    """Each element becomes (‖p‖₁/n)·sign(p), where p is its group of n elements.

    This is Algorithm 1 of the paper, applied layer by layer as in the paper's experiments, and the EF-SignSGD
    of the language-model study (maysarahammouda/GradComp). The paper applies it to γ·g, where γ is the
    learning rate. Here it is applied to the gradient; the two are equal while γ is constant, and otherwise
    with `--memory-lr-ratio`. The method requires error feedback: without it, it need not converge (section
    3). Zero counts as positive here.

    Payload bytes per rank: 1 bit per element (`values`, in whole bytes) and 4 bytes per group (`scales`).
    """

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        sum_G = ops.statistics(grad_N, residual_N, sizes, ops.Kind.ABSOLUTE).sum_G
        scale_G = (sum_G / counts_of(sizes, sum_G)).float()
        return self.encode_signs(grad_N, residual_N, sizes, scale_G)


REDUCER = EfSignSgd
