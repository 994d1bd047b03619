"""The error that stays in a signal when a part of it was sent."""

import torch
from torch import Tensor

from sage.ops import native, reference

_native = torch.ops.sage
native.register("keep_error_", lambda signal, sent: None)


def keep_error(signal: Tensor, sent: Tensor) -> None:
    """Subtract what was sent from the signal (of the same shape) in place; what is not finite becomes 0.

    >>> signal = torch.tensor([3.0, float("inf")])
    >>> keep_error(signal, torch.tensor([1.0, 1.0]))
    >>> signal
    tensor([2., 0.])
    """
    if native.takes("keep_error_", signal, sent):
        _native.keep_error_.default(signal.view(-1), sent.view(-1))
    else:
        reference.keep_error(signal, sent)
