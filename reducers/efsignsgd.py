"""EF-SignSGD: signs times the mean magnitude of each layer (Karimireddy et al., ICML 2019)."""
# N = elements of the vector, G = groups, B = bytes

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage.reduction import Buckets, Parts, Quantiser, Wire, ops, per_group


class EfSignSgd(Quantiser):
    """Each element becomes (‖p‖₁/n)·sign(p), p being its group of n elements.

    This is algorithm 1 of the paper, layer by layer as the paper's experiments have it, and the EF-SignSGD of
    the language-model study (maysarahammouda/GradComp). The paper applies it to γ·g, γ being the learning
    rate; here it is applied to the gradient, which is the same while γ is constant, and otherwise with
    `--memory-lr-ratio`. It is meant with error feedback, without which it need not converge (section 3). Zero
    counts as positive here. Bytes each rank hands over: a bit an element (`values`, in whole bytes) and 4 a
    group (`scales`).
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
