"""0/1 Adam: a second moment that is refreshed ever more rarely, then local steps between synchronisations."""
# N = elements of all parameters

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sage.comm.wire import Wire
from sage.optim.adam import AdamBase, adam_defaults, check_count
from sage.optim.groups import Grouping, group_sizes
from sage.optim.one_bit import OneBitAllReduce, share_of


class ZeroOneAdam(AdamBase):
    """0/1 Adam (Lu et al., 2022, https://arxiv.org/abs/2202.06009).

    With this rank's gradient g_i, learning rate η, weight decay λ, and AR the mean over ranks, in steps
    1 … T:

        refresh:      g = AR(g_i),  v ← β₂v + (1 − β₂)g²
        other steps:  g = AR_1bit(g_i)
        both:         m ← β₁m + (1 − β₁)g,  θ ← (1 − ηλ)θ − η·m/(√v + ε)

    Steps that are multiples of a gap refresh v; the gap is 1 at first and doubles after each κ refreshes
    (`var_update_scaler`). From step T + 1, v is frozen, and each rank takes local steps:

        m_i ← β₁m_i + (1 − β₁)g_i,  θ_i ← (1 − ηλ)θ_i − η·m_i/(√v + ε)
        in steps that are multiples of a gap, with the common parameters θ of the last such step:
        b = AR_1bit((θ_i − θ)(√v + ε)),  m_i ← −b/Ση,  θ ← θ + b/(√v + ε),  θ_i ← θ

    where Ση is the sum of the learning rates since then. This gap is 1 at first and doubles every
    `local_step_scaler` steps, up to `local_step_clipper`. AR_1bit is `sage.optim.one_bit.OneBitAllReduce`;
    its errors are those of gradients until step T, and are then set to 0.

    The paper's text was not at hand: the rules are those of DeepSpeed (commit edaa72212,
    runtime/fp16/onebit/zoadam.py), with three differences. θ is kept (N numbers), and not recovered by
    subtracting the change, so that all ranks have the same bits. The first local step is T + 1. An element
    with v = 0 keeps m = 0, as in `OneBitAdam`.

    Between two synchronisations the ranks have different parameters: use `common_parameters()` to evaluate.
    Bytes that a rank passes to collectives: 4N in a refresh, about N/8 to the servers and N/8W of this rank's
    chunk in steps with AR_1bit, and none in local steps; besides, 4 in each step, for the check of the
    gradients (`control`). State of a rank: m, v and θ (N each, equal on all ranks), m_i and the worker error
    (N each), the server error (N/W).

    Args:
        params: As `torch.optim` takes them; float32.
        lr: η. A scheduler of torch can change it.
        freeze_step: T (`var_freeze_step` in DeepSpeed, where it is 100,000).
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ, decoupled.
        var_update_scaler: κ.
        local_step_scaler: Local steps after which their gap doubles.
        local_step_clipper: The largest gap.
        grouping: As in `OneBitAdam`.
        group, timeout, guard, wire: As in `sage.optim.base.ReducingOptimizer`.

    Raises:
        ValueError: if an option is out of range, or a parameter does not fit.
    """

    name = "zeroone-adam"

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-3,
        freeze_step: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        var_update_scaler: int = 16,
        local_step_scaler: int = 32678,
        local_step_clipper: int = 16,
        grouping: Grouping = "model",
        group: dist.ProcessGroup | None = None,
        timeout: float = 300.0,
        guard: bool = False,
        wire: Wire | None = None,
    ) -> None:
        self.freeze_step = check_count("freeze_step", freeze_step)
        self._var_scaler = check_count("var_update_scaler", var_update_scaler)
        self._local_scaler = check_count("local_step_scaler", local_step_scaler)
        self._clipper = check_count("local_step_clipper", local_step_clipper)
        self._density = 1.0
        super().__init__(
            params,
            adam_defaults(lr, betas, eps, weight_decay),
            settings={
                "freeze_step": freeze_step,
                "var_update_scaler": var_update_scaler,
                "local_step_scaler": local_step_scaler,
                "local_step_clipper": local_step_clipper,
                "grouping": grouping,
            },
            group=group,
            timeout=timeout,
            guard=guard,
            wire=wire,
        )
        self.new_moments()
        numel = self.layout.numel
        self._common_N = self.new_shared("common")
        self.common = self.views(self._common_N)
        """The parameters that all ranks have in common: those of the last synchronisation."""
        self._local_m_N = self.new_own("local_exp_avg", numel)
        self._local_m = self.views(self._local_m_N)
        self._lr_sums = self.new_own("lr_sum", len(self.parameters))
        worker_N = self.new_own("worker_error", numel)
        server_S = self.new_own("server_error", share_of(numel, self.wire.rank, self.wire.world_size))
        self._all_reduce = OneBitAllReduce(group_sizes(self.layout, grouping), worker_N, server_S, self.wire)
        with torch.no_grad():
            self._keep()

    def update(self, gradients: list[Tensor]) -> None:
        step = int(self.num_steps)
        self._density = 1.0
        if step <= self.freeze_step:
            self._step_together(step, gradients)
            return
        if step == self.freeze_step + 1:
            self._local_m_N.copy_(self.m_N)
            self.own["worker_error"].zero_()
            self.own["server_error"].zero_()
        for m, gradient, group in zip(self._local_m, gradients, self.options(), strict=True):
            m.lerp_(gradient, 1 - group["betas"][0])
        self._local_m_N.masked_fill_(self.v_N == 0, 0.0)
        self.descend(self._local_m)
        self._lr_sums += torch.tensor([float(group["lr"]) for group in self.options()], device=self.device)
        if step % local_gap(step - self.freeze_step, self._local_scaler, self._clipper) == 0:
            self._synchronise()
        else:
            self._density = 0.0

    def _step_together(self, step: int, gradients: list[Tensor]) -> None:
        if is_refresh(step, self._var_scaler):
            mean = self.views(self.mean(gradients))
            self.first_moment(mean)
            self.second_moment(mean)
        else:
            grad_N = torch.cat([gradient.reshape(-1) for gradient in gradients])
            self.first_moment(self.views(self._all_reduce(grad_N)))
            self.m_N.masked_fill_(self.v_N == 0, 0.0)
        self.descend(self.m)
        self._keep()

    def _synchronise(self) -> None:
        """Replace parameters and momentum by the common ones."""
        places = list(zip(self.parameters, self.common, self.v, self.options(), strict=True))
        change_N = torch.cat(
            [((p - common) * (v.sqrt() + group["eps"])).reshape(-1) for p, common, v, group in places]
        )
        self._all_reduce(change_N).masked_fill_(self.v_N == 0, 0.0)
        sums = self._lr_sums.tolist()
        for (p, common, v, group), change, m, lr_sum in zip(
            places, self.views(change_N), self.m, sums, strict=True
        ):
            if lr_sum:  # without a learning rate, the change says nothing about the momentum
                torch.div(change, -lr_sum, out=m)
            common += change / (v.sqrt() + group["eps"])
            p.copy_(common)
        self._lr_sums.zero_()
        self._local_m_N.copy_(self.m_N)

    def _keep(self) -> None:
        for p, common in zip(self.parameters, self.common, strict=True):
            common.copy_(p)

    @property
    def density(self) -> float:
        return self._density

    # State.

    @contextmanager
    def common_parameters(self) -> Iterator[None]:
        """Within the context, the parameters are those that all ranks have in common."""
        with torch.no_grad():
            local = [p.detach().clone() for p in self.parameters]
            for p, common in zip(self.parameters, self.common, strict=True):
                p.copy_(common)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, x in zip(self.parameters, local, strict=True):
                    p.copy_(x)

    def check_replicas(self) -> None:
        """Check that the common parameters are bitwise identical on all ranks, as in the base class."""
        with self.common_parameters():
            super().check_replicas()

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state, and set the parameters to the common ones; load the model's state before it."""
        super().load_state_dict(state_dict)
        for p, common in zip(self.parameters, self.common, strict=True):
            p.copy_(common)

    def own_state_dict(self) -> dict[str, Any]:
        """Return the state of this rank, with its parameters, which differ between two synchronisations."""
        return {**super().own_state_dict(), "weights": [p.detach().clone() for p in self.parameters]}

    @torch.no_grad()
    def load_own_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state and the parameters of this rank, after `load_state_dict`."""
        weights = state.get("weights", [])
        shapes, expected = [list(x.shape) for x in weights], [list(p.shape) for p in self.parameters]
        if shapes != expected:
            raise ValueError(f"the weights of a rank have the shapes {shapes}; expected {expected}")
        super().load_own_state_dict({name: x for name, x in state.items() if name != "weights"})
        for p, x in zip(self.parameters, weights, strict=True):
            p.copy_(x)

    @torch.no_grad()
    def reset_own(self) -> None:
        super().reset_own()
        self._local_m_N.copy_(self.m_N)


def is_refresh(step: int, scaler: int) -> bool:
    """Whether a step, counted from 1, refreshes the second moment.

    >>> [step for step in range(1, 41) if is_refresh(step, 3)]
    [1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40]
    """
    last, gap = 0, 1
    while True:
        first = (last // gap + 1) * gap
        last = first + (scaler - 1) * gap
        if step <= last:
            return step % gap == 0
        gap *= 2


def local_gap(local_step: int, scaler: int, clipper: int) -> int:
    """The gap of synchronisations at a local step, counted from 1.

    >>> [local_gap(step, 4, 3) for step in range(1, 14)]
    [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]
    """
    doublings = (local_step - 1) // scaler
    return clipper if doublings >= clipper.bit_length() else min(clipper, 2**doublings)
