"""Signum: descent along the sign of the momentum.

Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems", 2018,
https://arxiv.org/abs/1802.04434, algorithm 2. The reducer `signum` sends signs; this optimiser takes the sign
of the mean gradient's momentum, whatever the reducer.
"""

from typing import Any

import torch
from torch.optim.optimizer import ParamsT


class Signum(torch.optim.Optimizer):
    """Moves each element by the learning rate, against the sign of its momentum.

    With gradient g, weights x, momentum mu, learning rate lr and decoupled weight decay w:

        m <- mu m + (1 - mu) g
        x <- (1 - lr w) x - lr sign(m)

    With `nesterov`, the sign is that of mu m + (1 - mu) g. With a momentum of 0, this is signSGD
    (algorithm 1).

    >>> x = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.0]))
    >>> x.grad = torch.tensor([0.3, -5.0, 0.0])
    >>> Signum([x], lr=0.5).step()
    >>> x.tolist()
    [0.5, -1.5, 0.0]
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; the closure, if there is one, computes loss and gradient again."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            momentum = group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad
                if momentum:
                    state = self.state[p]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(p)
                    m = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                    update = p.grad.lerp(m, momentum) if group["nesterov"] else m
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.sign(), alpha=-group["lr"])
        return loss
