"""1-bit LAMB: dense LAMB at first, then scaled momenta of 1 bit per element and frozen coefficients."""
# N = elements of all parameters, P = number of parameters

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sage.comm.wire import Wire
from sage.optim.adam import AdamBase, adam_defaults, check_count
from sage.optim.one_bit import OneBitAllReduce, share_of


class OneBitLamb(AdamBase):
    """1-bit LAMB (Li et al., 2021, https://arxiv.org/abs/2104.06069).

    With this rank's gradient g_i, learning rate η, weight decay λ, and AR the mean over ranks, for each
    parameter θ (a tensor), in steps 1 … T:

        g = AR(g_i),  m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²
        u = m/(√v + ε) + λθ,  c = ‖θ‖/‖u‖, between `min_coeff` and `max_coeff`; 1 if either norm is 0
        θ ← θ − η·c·u,  c̄ ← .9c̄ + .1c unless c = 1                 (c̄ is 0 at first)

    After step T, v and c̄ are frozen, v' = v, f = 1, and a = R/RMS(m), where R is the mean of the RMS of all
    parameters' momenta (1 if RMS(m) is 0). From step T + 1:

        m_i = β₁m + (1 − β₁)g_i,  m' ← AR_1bit(a·m_i)/a             (all parameters together, with one scale)
        v' ← β₂v' + (1 − β₂)((m' − β₁m)/(1 − β₁))²,  m ← m'
        h = max over elements of (√v + ε)/(√v' + ε);  with λ: h·r + 1 − r, r = min(1, ‖m/(√v + ε)‖/‖u‖)
        f ← h, between `factor_min` and `factor_max`, and then between .9f and 1.1f
        θ ← θ − η·c̄·f·u

    AR_1bit is `sage.optim.one_bit.OneBitAllReduce`. An element with v = 0 keeps m = 0, as in `OneBitAdam`.

    The paper's text was not at hand. The scaled momenta, the average of c, v' and the bounds of f are the
    notes' on DeepSpeed (commit edaa72212, runtime/fp16/onebit/lamb.py). From memory, and unverified: the
    bounds of c, that c̄ begins at 0 and leaves out c = 1, that R is a mean, and r.

    Bytes that a rank passes to collectives: as `OneBitAdam` with one group. State of a rank: m, v and v' (N
    each) and three numbers a parameter, equal on all ranks; the worker error (N) and the server error (N/W).

    Args:
        params: As `torch.optim` takes them; float32.
        lr: η. A scheduler of torch can change it.
        freeze_step: T, after the warm-up of the learning rate; DeepSpeed's default is 100,000.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ, decoupled.
        max_coeff, min_coeff: Bounds of c.
        coeff_beta: Factor of the average of c, .9 above.
        factor_max, factor_min: Bounds of f.
        factor_threshold: Largest relative change of f in a step, .1 above.
        group, timeout, guard, wire: As in `sage.optim.base.ReducingOptimizer`.

    Raises:
        ValueError: if an option is out of range, or a parameter does not fit.
    """

    name = "onebit-lamb"

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-3,
        freeze_step: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_coeff: float = 10.0,
        min_coeff: float = 0.01,
        coeff_beta: float = 0.9,
        factor_max: float = 4.0,
        factor_min: float = 0.5,
        factor_threshold: float = 0.1,
        group: dist.ProcessGroup | None = None,
        timeout: float = 300.0,
        guard: bool = False,
        wire: Wire | None = None,
    ) -> None:
        self.freeze_step = check_count("freeze_step", freeze_step)
        self._coeff_bounds = _bounds("min_coeff", min_coeff, "max_coeff", max_coeff)
        self._factor_bounds = _bounds("factor_min", factor_min, "factor_max", factor_max)
        self._coeff_beta = _fraction("coeff_beta", coeff_beta)
        self._threshold = _fraction("factor_threshold", factor_threshold)
        super().__init__(
            params,
            adam_defaults(lr, betas, eps, weight_decay),
            settings={
                "freeze_step": freeze_step,
                "max_coeff": max_coeff,
                "min_coeff": min_coeff,
                "coeff_beta": coeff_beta,
                "factor_max": factor_max,
                "factor_min": factor_min,
                "factor_threshold": factor_threshold,
            },
            group=group,
            timeout=timeout,
            guard=guard,
            wire=wire,
        )
        self.new_moments()
        self._fresh_N = self.new_shared("exp_avg_sq_fresh")
        self._fresh = self.views(self._fresh_N)
        self._coeffs = self._new_numbers("coeff", 0.0)
        self._factors = self._new_numbers("factor", 1.0)
        self._scales = self._new_numbers("scale", 1.0)
        numel = self.layout.numel
        worker_N = self.new_own("worker_error", numel)
        server_S = self.new_own("server_error", share_of(numel, self.wire.rank, self.wire.world_size))
        self._all_reduce = OneBitAllReduce([numel], worker_N, server_S, self.wire)

    def _new_numbers(self, name: str, value: float) -> list[Tensor]:
        """A number of each parameter, in its state."""
        numbers = [torch.full((), value) for _ in self.parameters]
        for p, number in zip(self.parameters, numbers, strict=True):
            self.state[p][name] = number
        return numbers

    def update(self, gradients: list[Tensor]) -> None:
        step = int(self.num_steps)
        if step <= self.freeze_step:
            mean = self.views(self.mean(gradients))
            self.first_moment(mean)
            self.second_moment(mean)
            self._descend_by_norms()
            if step == self.freeze_step:
                self._freeze()
        else:
            self._average_momenta(gradients)
            self._descend_by_factors()

    def _descend_by_norms(self) -> None:
        least, most = self._coeff_bounds
        for number, (p, group) in enumerate(zip(self.parameters, self.options(), strict=True)):
            _, u = self._direction(number)
            norm, update_norm = float(torch.linalg.vector_norm(p)), float(torch.linalg.vector_norm(u))
            coeff = min(most, max(least, norm / update_norm)) if norm and update_norm else 1.0
            if coeff != 1:
                average = self._coeffs[number]
                average.mul_(self._coeff_beta).add_((1 - self._coeff_beta) * coeff)
            p.add_(u, alpha=-float(group["lr"]) * coeff)

    def _freeze(self) -> None:
        self._fresh_N.copy_(self.v_N)
        sizes = [max(1, m.numel()) for m in self.m]
        roots = [float(torch.linalg.vector_norm(m)) / n**0.5 for m, n in zip(self.m, sizes, strict=True)]
        united = sum(roots) / len(roots)
        for scale, root in zip(self._scales, roots, strict=True):
            scale.fill_(united / root if root else 1.0)

    def _average_momenta(self, gradients: list[Tensor]) -> None:
        before = self.views(self.m_N.clone())
        self.first_moment(gradients)
        scales = [float(scale) for scale in self._scales]
        for m, scale in zip(self.m, scales, strict=True):
            m.mul_(scale)
        self._all_reduce(self.m_N)
        for m, scale in zip(self.m, scales, strict=True):
            m.div_(scale)
        self.m_N.masked_fill_(self.v_N == 0, 0.0)
        for m, old, fresh, group in zip(self.m, before, self._fresh, self.options(), strict=True):
            beta1, beta2 = group["betas"]
            recovered = (m - old * beta1) / (1 - beta1)
            fresh.mul_(beta2).addcmul_(recovered, recovered, value=1 - beta2)

    def _descend_by_factors(self) -> None:
        for number, (p, group) in enumerate(zip(self.parameters, self.options(), strict=True)):
            if not p.numel():
                continue
            adam, u = self._direction(number)
            eps = group["eps"]
            ratio = (self.v[number].sqrt() + eps) / (self._fresh[number].sqrt() + eps)
            wanted = float(ratio.max())
            if group["weight_decay"]:
                norm = float(torch.linalg.vector_norm(u))
                share = min(1.0, float(torch.linalg.vector_norm(adam)) / norm) if norm else 1.0
                wanted = wanted * share + 1 - share
            factor = next_factor(wanted, float(self._factors[number]), self._factor_bounds, self._threshold)
            self._factors[number].fill_(factor)
            p.add_(u, alpha=-float(group["lr"]) * float(self._coeffs[number]) * factor)

    def _direction(self, number: int) -> tuple[Tensor, Tensor]:
        """m/(√v + ε) of a parameter, and u."""
        p, group = self.parameters[number], self.options()[number]
        adam = self.m[number] / (self.v[number].sqrt() + group["eps"])
        return adam, adam + p * group["weight_decay"] if group["weight_decay"] else adam


def next_factor(wanted: float, last: float, bounds: tuple[float, float], threshold: float) -> float:
    """The factor of a frozen coefficient: within the bounds, and then near the last one.

    >>> [next_factor(wanted, 2.0, (0.5, 4.0), 0.25) for wanted in (0.1, 1.75, 2.25, 99.0)]
    [1.5, 1.75, 2.25, 2.5]
    """
    within = min(bounds[1], max(bounds[0], wanted))
    return min(last * (1 + threshold), max(last * (1 - threshold), within))


def _bounds(least_name: str, least: float, most_name: str, most: float) -> tuple[float, float]:
    if not 0 < least <= most < float("inf"):
        raise ValueError(
            f"{least_name} is {least:g} and {most_name} is {most:g}; expected finite numbers above 0, the "
            "first at most the second"
        )
    return least, most


def _fraction(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value:g}; expected a number from 0 to below 1")
    return value
