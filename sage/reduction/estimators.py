"""Error feedback by estimates: each rank sends the difference of its gradient from an estimate of it.

With g_i the gradient of rank i, C what the reducer sends of a vector, h_i the rank's estimate, and h the mean
over the ranks of all h_i, which every rank keeps up to date from the means that it receives:

    EF21       c_i = C(g_i − h_i);  h_i ← h_i + c_i;  h ← h + mean c_i;  step with h
    EF21-SGDM  v_i ← (1 − a)·v_i + a·g_i;  c_i = C(v_i − h_i);  then as EF21
    EControl   c_i = C(η·e_i + g_i − h_i);  e_i ← e_i + g_i − h_i − c_i;  then as EF21
    DIANA      c_i = C(g_i − h_i);  step with h + mean c_i;  h_i ← h_i + a·c_i;  h ← h + a·mean c_i

EF21: Richtárik, Sokolov, Fatkhullin, 2021, https://arxiv.org/abs/2106.05203. EF21-SGDM: Fatkhullin, Tyurin,
Richtárik, 2023, https://arxiv.org/abs/2305.15155. EControl: Gao, Islamov, Stich, 2024,
https://arxiv.org/abs/2311.05645. DIANA: Mishchenko et al., 2019, https://arxiv.org/abs/1901.09269. The
formulas have been checked by their laws (tests/reduction/test_estimators.py), not against the authors' code.

All estimates begin at 0, where the papers also allow a first gradient that is sent dense. What is sent has
the format of the reducer, and the same bytes. h is updated by rounded means, so it is the mean of h_i up to
rounding errors, which add up over the steps (`Reducer.precision` times what is sent).
"""
# N = elements of the flat vector

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sage.reduction.reducer import Memory, Reducer


class Estimator(nn.Module):
    """The estimates of EF21, and the base of the others.

    Args:
        n: Number of elements.
    """

    own_N: Tensor
    """h_i, the estimate of this rank's gradient."""
    common_N: Tensor
    """h, the mean of h_i over the ranks; bitwise identical on every rank."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("own_N", torch.zeros(n))
        self.register_buffer("common_N", torch.zeros(n))

    def signal(self, grad_N: Tensor) -> Tensor:
        """What the reducer compresses; overwrites the gradient."""
        return grad_N.sub_(self.own_N)

    def update(self, sent_N: Tensor, mean_N: Tensor) -> Tensor:
        """Update the estimates, and return the vector to step with.

        Args:
            sent_N: c_i, what this rank sent.
            mean_N: Mean of c_i over the ranks.
        """
        self.own_N.add_(sent_N)
        return self.common_N.add_(mean_N)

    def bound(self, norm: Callable[[Tensor], float]) -> float:
        """What the estimates add to a bound of every element of the signal and of the step."""
        return sum(norm(x_N) for x_N in self.buffers())


class Averaging(Estimator):
    """EF21-SGDM: as EF21, of a moving average of the gradient in its place, which begins at 0.

    Args:
        n: Number of elements.
        a: Weight of the newest gradient.
    """

    average_N: Tensor
    """v_i."""

    def __init__(self, n: int, *, a: float) -> None:
        super().__init__(n)
        self._a = a
        self.register_buffer("average_N", torch.zeros(n))

    def signal(self, grad_N: Tensor) -> Tensor:
        self.average_N.mul_(1 - self._a).add_(grad_N, alpha=self._a)
        return grad_N.copy_(self.average_N).sub_(self.own_N)


class Controlled(Estimator):
    """EControl: as EF21, and what the estimate lacks accumulates in an error, of which a part is sent too.

    Args:
        n: Number of elements.
        eta: Strength η of the error. Too strong for what C keeps, the error grows without bound.
    """

    error_N: Tensor
    """e_i."""

    def __init__(self, n: int, *, eta: float) -> None:
        super().__init__(n)
        self._eta = eta
        self.register_buffer("error_N", torch.zeros(n))

    def signal(self, grad_N: Tensor) -> Tensor:
        grad_N.sub_(self.own_N)
        difference_N = grad_N.clone()
        grad_N.add_(self.error_N, alpha=self._eta)
        self.error_N.add_(difference_N)
        return grad_N

    def update(self, sent_N: Tensor, mean_N: Tensor) -> Tensor:
        self.error_N.sub_(sent_N)
        return super().update(sent_N, mean_N)


class Shifting(Estimator):
    """DIANA: the step is with h + mean c_i, and the estimates follow by a part of what was sent.

    Args:
        n: Number of elements.
        a: Part of what was sent that is added to the estimates. In theory at most 1/(1 + ω), where
            E‖C(x) − x‖² ≤ ω·‖x‖².
    """

    def __init__(self, n: int, *, a: float) -> None:
        super().__init__(n)
        self._a = a

    def update(self, sent_N: Tensor, mean_N: Tensor) -> Tensor:
        step_N = self.common_N + mean_N
        self.own_N.add_(sent_N, alpha=self._a)
        self.common_N.add_(mean_N, alpha=self._a)
        return step_N


ESTIMATING: tuple[Memory, ...] = ("ef21", "ef21-sgdm", "econtrol", "diana")
"""The memories that are an `Estimator`."""


def estimator(memory: Memory, n: int, *, a: float, eta: float) -> Estimator | None:
    """Return the estimates of a memory; None if it has none.

    Args:
        memory: Kind of error feedback.
        n: Number of elements.
        a: For EF21-SGDM and DIANA.
        eta: For EControl.
    """
    match memory:
        case "ef21":
            return Estimator(n)
        case "ef21-sgdm":
            return Averaging(n, a=a)
        case "econtrol":
            return Controlled(n, eta=eta)
        case "diana":
            return Shifting(n, a=a)
        case _:
            return None


def check_estimated(memory: Memory, reducer: Reducer, *, beta: float, gamma: float, lr_ratio: bool) -> None:
    """Refuse a reducer and options that estimates do not go with.

    Raises:
        ValueError: if the mean that the reducer returns is not that of what the ranks sent, its selection
            needs squares of gradients, or an option is one of a residual.
    """
    name = type(reducer).__name__.lower()
    why = None
    if not reducer.conserves:
        why = "whose mean is not the mean of what the ranks sent, so that the estimates would differ from it"
    elif reducer.needs_squares:
        why = "which compares gradients with their own squares, not differences from an estimate"
    if why is not None:
        raise ValueError(
            f"memory is {memory!r} with the reducer {name}, {why}: use another reducer, or the memory none "
            "or residual"
        )
    for option, given, neutral in (("beta", beta, 1), ("gamma", gamma, 1), ("lr_ratio", lr_ratio, False)):
        if given != neutral:
            raise ValueError(
                f"memory is {memory!r}, which has no residual, and its option {option} is {given!r}: set it "
                f"to {neutral}, or use the memory residual"
            )
