"""1-bit Adam: dense Adam at first, then a frozen second moment and a momentum of 1 bit per element."""
# N = elements of all parameters

import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sage.comm.wire import Wire
from sage.optim.adam import AdamBase, adam_defaults, check_count
from sage.optim.groups import Grouping, group_sizes
from sage.optim.one_bit import OneBitAllReduce, share_of


class OneBitAdam(AdamBase):
    """1-bit Adam (Tang et al., 2021, https://arxiv.org/abs/2102.02888).

    With this rank's gradient g_i, learning rate η, weight decay λ, and AR the mean over ranks:

        steps 1 … T:     g = AR(g_i),  m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²
        from step T + 1: m_i = β₁m + (1 − β₁)g_i,  m ← AR_1bit(m_i),  v as after step T
        θ ← (1 − ηλ)θ − η·m/(√v + ε)

    AR_1bit is `sage.optim.one_bit.OneBitAllReduce`. There is no bias correction, as in DeepSpeed (commit
    edaa72212, runtime/fp16/onebit/adam.py). With `bias_correction`, m is divided by 1 − β₁^t and v by
    1 − β₂^min(t, T) at step t; until the freeze this is then `torch.optim.AdamW` of the mean gradient.

    An element that has had no gradient on any rank until the freeze (v = 0) keeps m = 0 after it: AR_1bit has
    no code for 0, and the element's error divided by ε would be a large step. DeepSpeed has a mask that the
    user passes (`exp_avg_mask`) for this.

    Bytes that a rank passes to collectives (`optimizer.wire.ledger`): 4N a step until the freeze (`values`);
    after it about N/8 to the servers and N/8W of this rank's chunk, and two lists of scales. State of a rank:
    m and v (N each, equal on all ranks), the worker error (N), the server error (N/W).

    Args:
        params: As `torch.optim` takes them; float32.
        lr: η. A scheduler of torch can change it.
        freeze_step: T. It must be after the warm-up of the learning rate, when v has settled; DeepSpeed's
            default is 100,000.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ, decoupled.
        bias_correction: Whether the moments are corrected as in Adam.
        grouping: Elements with one scale: the whole model, as one vector, or each parameter (`layer`).
        group, timeout, guard, wire: As in `sage.optim.base.ReducingOptimizer`.

    Raises:
        ValueError: if an option is out of range, or a parameter does not fit.
    """

    name = "onebit-adam"

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float = 1e-3,
        freeze_step: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = False,
        grouping: Grouping = "model",
        group: dist.ProcessGroup | None = None,
        timeout: float = 300.0,
        guard: bool = False,
        wire: Wire | None = None,
    ) -> None:
        self.freeze_step = check_count("freeze_step", freeze_step)
        self._is_corrected = bias_correction
        super().__init__(
            params,
            adam_defaults(lr, betas, eps, weight_decay),
            settings={"freeze_step": freeze_step, "bias_correction": bias_correction, "grouping": grouping},
            group=group,
            timeout=timeout,
            guard=guard,
            wire=wire,
        )
        self.new_moments()
        numel = self.layout.numel
        worker_N = self.new_own("worker_error", numel)
        server_S = self.new_own("server_error", share_of(numel, self.wire.rank, self.wire.world_size))
        self._all_reduce = OneBitAllReduce(group_sizes(self.layout, grouping), worker_N, server_S, self.wire)

    def update(self, gradients: list[Tensor]) -> None:
        step = int(self.num_steps)
        if step <= self.freeze_step:
            mean = self.views(self.mean(gradients))
            self.first_moment(mean)
            self.second_moment(mean)
        else:
            self.first_moment(gradients)
            self._all_reduce(self.m_N)
            self.m_N.masked_fill_(self.v_N == 0, 0.0)
        corrected = (step, min(step, self.freeze_step)) if self._is_corrected else None
        self.descend(self.m, corrected=corrected)
