"""This rank's gradients, as an optimiser that communicates needs them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sage.comm.wire import Wire


def own_gradients(parameters: Iterable[nn.Parameter], *, scale: Tensor | None) -> list[Tensor]:
    """Return the gradient of each parameter, 0 where there is none, divided by a loss scale if there is one.

    Raises:
        ValueError: if a gradient is sparse.
    """
    gradients = []
    for p in parameters:
        if p.grad is None:
            gradients.append(torch.zeros_like(p))
        elif p.grad.layout != torch.strided:
            raise ValueError(
                f"a parameter of shape {list(p.shape)} has a sparse gradient: set sparse=False of its layer"
            )
        else:
            gradients.append(p.grad if scale is None else p.grad / scale)
    return gradients


def num_not_finite(gradients: Iterable[Tensor], wire: Wire) -> int:
    """Return the number of ranks with a gradient that is not finite; exchanges 4 bytes (`control`)."""
    first, *others = [gradient.isfinite().all() for gradient in gradients]
    flag = 1 - torch.stack([first, *others]).all().float().reshape(1)
    if wire.world_size > 1:
        wire.sum(flag, kind="control")
    return int(flag)
