"""EF-SignSGD: sends signs and the mean magnitude of each layer (Karimireddy et al., ICML 2019)."""
# N = elements of the vector, G = groups, B = bytes

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage.reduction import Buckets, Parts, Quantiser, Wire, ops, per_group


class EfSignSgd(Quantiser):
    """Each element becomes (‖p‖₁/n)·sign(p), where p is its group of n elements.

    This is Algorithm 1 of the paper, applied layer by layer as in the paper's experiments, and the EF-SignSGD
    of the language-model study (maysarahammouda/GradComp). The paper applies it to γ·g, where γ is the
    learning rate. Here it is applied to the gradient; the two are equal while γ is constant, and otherwise
    with `--memory-lr-ratio`. The method requires error feedback: without it, it need not converge (section
    3). Zero counts as positive here.

    Payload bytes per rank: 1 bit per element (`values`, in whole bytes) and 4 bytes per group (`scales`).
    """

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        return {
            "values": ops.pack_signs(x_N),
            "scales": per_group(x_N, sizes, lambda x: x.abs().mean(dtype=torch.float32)),
        }

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        return Buckets(sizes).scale_(ops.unpack_signs(parts["values"], sum(sizes)), parts["scales"])

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": -(-sum(sizes) // 8), "scales": 4 * len(sizes)}


REDUCER = EfSignSgd
