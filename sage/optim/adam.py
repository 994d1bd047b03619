"""What 1-bit Adam and 0/1 Adam share: the moments as flat vectors, and Adam's update of the parameters."""
# N = elements of all parameters

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sage.optim.base import ReducingOptimizer
from sage.validate import shown


class AdamBase(ReducingOptimizer):
    """Adam with decoupled weight decay λ, whose moments a subclass computes.

        m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  θ ← (1 − ηλ)θ − η·m/(√v + ε)

    The operations are those of `torch.optim.AdamW` in its order, without its bias corrections.
    """

    def new_moments(self) -> None:
        """Create the moments, 0 at first, in the state of the parameters under torch's names."""
        self.m_N, self.v_N = self.new_shared("exp_avg"), self.new_shared("exp_avg_sq")
        self.m, self.v = self.views(self.m_N), self.views(self.v_N)

    def first_moment(self, gradients: Sequence[Tensor]) -> None:
        """Update m."""
        for m, gradient, group in zip(self.m, gradients, self.options(), strict=True):
            m.lerp_(gradient, 1 - group["betas"][0])

    def second_moment(self, gradients: Sequence[Tensor]) -> None:
        """Update v."""
        for v, gradient, group in zip(self.v, gradients, self.options(), strict=True):
            beta2 = group["betas"][1]
            v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)

    def descend(self, momenta: Sequence[Tensor], *, corrected: tuple[int, int] | None = None) -> None:
        """Update the parameters.

        Args:
            momenta: m of each parameter.
            corrected: t₁ and t₂ of the bias corrections 1 − β₁^t₁ of m and 1 − β₂^t₂ of v; None: no
                correction.
        """
        for p, m, v, group in zip(self.parameters, momenta, self.v, self.options(), strict=True):
            lr, (beta1, beta2) = float(group["lr"]), group["betas"]
            p.mul_(1 - lr * group["weight_decay"])
            root = v.sqrt()
            if corrected is not None:
                lr /= 1 - beta1 ** corrected[0]
                root.div_((1 - beta2 ** corrected[1]) ** 0.5)
            p.addcdiv_(m, root.add_(group["eps"]), value=-lr)


def adam_defaults(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> dict[str, Any]:
    """The options of Adam that a group of parameters may have its own values of.

    Raises:
        ValueError: if one is out of range.
    """
    beta1, beta2 = betas
    for name, value, is_right, expected in (
        ("lr", lr, 0 <= lr < float("inf"), "a finite number, at least 0"),
        ("betas", betas, 0 <= beta1 < 1 and 0 <= beta2 < 1, "two numbers from 0 to below 1"),
        ("eps", eps, 0 < eps < float("inf"), "a finite number above 0"),
        ("weight_decay", weight_decay, 0 <= weight_decay < float("inf"), "a finite number, at least 0"),
    ):
        if not is_right:
            raise ValueError(f"{name} is {shown(value)}; expected {expected}")
    return {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}


def check_count(name: str, value: int, least: int = 1) -> int:
    """Return a number of steps.

    Raises:
        ValueError: if it is below `least`.
    """
    if value < least:
        raise ValueError(f"{name} is {value}; expected an integer of at least {least}")
    return value
