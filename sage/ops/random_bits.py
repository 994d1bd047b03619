"""Random bits that depend on a seed alone."""
# N = elements

import torch
from torch import Tensor

from sage.ops import native, reference

_native = torch.ops.sage
native.register("draw_", lambda out, seed, bits: None)


def draw(n: int, bits: int, seed: int, device: torch.device) -> Tensor:
    """Random integers of `bits` bits, 1 to 24, for n elements (int32): those of torch.randint with this seed.

    >>> generator = torch.Generator().manual_seed(7)
    >>> torch.equal(draw(5, 24, 7, torch.device("cpu")) / 2**24, torch.rand(5, generator=generator))
    True
    """
    out_N = torch.empty(n, dtype=torch.int32, device=device)
    if native.takes("draw_", out_N, dtype=torch.int32):
        _native.draw_.default(out_N, seed, bits)
        return out_N
    return reference.draw_(out_N, bits, seed)
