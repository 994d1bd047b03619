"""The product of two thin matrices, and what a signal keeps when it was sent."""
# n, m = rows and columns of the product, r = its rank

import torch
from torch import Tensor

from sage.ops import native, reference

_native = torch.ops.sage
native.register("write_product_", lambda out, signal, left, right, rank: None)


def write_product(left: Tensor, right: Tensor, out: Tensor, signal: Tensor | None = None) -> None:
    """Write left (n × r) times right (r × m, r ≥ 1) to `out`, and subtract it from `signal` in place.

    What of the signal is then not finite becomes 0, as in `keep_error`. `out` and `signal` are n × m, without
    gaps. An element is the sum of its r products in their order, each rounded.

    >>> out, signal = torch.empty(2, 2), torch.tensor([[1.0, 2.0], [float("inf"), 4.0]])
    >>> write_product(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 1.0]]), out, signal)
    >>> out.tolist(), signal.tolist()
    ([[1.0, 1.0], [2.0, 2.0]], [[0.0, 1.0], [0.0, 2.0]])
    """
    flat, own = out.view(-1), None if signal is None else signal.view(-1)
    left_F, right_F = left.reshape(-1), right.reshape(-1)
    if native.takes("write_product_", flat, own, left_F, right_F):
        _native.write_product_.default(flat, own, left_F, right_F, right.shape[0])
    else:
        reference.write_product(left, right, out, signal)
