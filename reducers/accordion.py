"""Accordion: top-k with a higher density for layers in critical regimes (Agarwal et al., MLSys 2021)."""
# N = elements of the flat vector, G = groups (layers)

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from sage.reduction import Layout, Reducer, SparsifierOptions, Wire, check_fraction

from .topk import GroupTopK


class CriticalRegimes(Reducer):
    """Base class that detects layers in critical regimes every few epochs (Agarwal et al., Algorithm 1).

    List it before the reducer whose levels it sets, as in `class Accordion(CriticalRegimes, GroupTopK)`. That
    reducer must add each step's mean gradient to `sum_N`.
    """

    level: ClassVar[str]
    """Name of the buffer of each layer's level, such as its density: float64 (G), registered by `bind`."""

    sum_N: Tensor
    norm_G: Tensor
    last_lr: Tensor

    def set_rule(self, *, low: float, high: float, switch_every: int, eta: float) -> None:
        """Set the levels outside and inside critical regimes, the epochs between decisions, and η.

        Raises:
            ValueError: if `switch_every` or `eta` is out of range.
        """
        if switch_every < 1:
            raise ValueError(f"switch_every={switch_every!r}: expected 1 epoch or more")
        if not eta >= 0:
            raise ValueError(f"eta={eta!r}: expected 0 or more")
        self._low, self._high = low, high
        self._switch_every = switch_every
        self._eta = eta

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        self.get_buffer(self.level).fill_(self._high)
        self.register_buffer("sum_N", torch.zeros(layout.numel))
        self.register_buffer("norm_G", torch.zeros(len(layout.groups), dtype=torch.float64))
        self.register_buffer("last_lr", torch.zeros((), dtype=torch.float64))

    def begin_epoch(self, epoch: int, lr: float, wire: Wire) -> None:
        dropped = lr < float(self.last_lr)
        self.last_lr.fill_(lr)
        if epoch % self._switch_every == 0 or dropped:
            self._decide(everything_critical=epoch == 0 or dropped)
            wire.broadcast(self.get_buffer(self.level), root=0, kind="scales")
        self.sum_N.zero_()

    def _decide(self, *, everything_critical: bool) -> None:
        norm_G = self.norm_G.new_tensor([float(self.sum_N[a:b].norm()) for a, b in self.layout.groups])
        change_G = (self.norm_G - norm_G).abs()
        critical_G = (change_G > self._eta * self.norm_G) | everything_critical
        self.get_buffer(self.level).fill_(self._low).masked_fill_(critical_G, self._high)
        self.norm_G.copy_(norm_G)


class Accordion(CriticalRegimes, GroupTopK):
    """Choose `density_high` or `density` for each layer every `switch_every` epochs.

    This is Algorithm 1 of the paper applied to `topk`. A layer is in a critical regime, and sends
    `density_high`, in three cases: at epoch 0; when the learning rate has dropped; when | ‖g_prev‖ − ‖g_cur‖
    | / ‖g_prev‖ > η. g_cur is the reduced gradient summed over the last epoch; g_prev is the same quantity at
    the previous decision. g_prev is 0 at the first decision, so every layer is critical at the second. Rank 0
    decides and broadcasts the densities (`scales`, 8 bytes per layer).

    Args:
        density: Share of a layer's elements sent outside critical regimes, in (0, 1].
        density_high: Share sent inside critical regimes, in (0, 1]; by default ten times `density`.
        switch_every: Epochs between decisions, 1 or more.
        eta: Relative change of a layer's gradient norm above which the layer is critical, 0 or more.

    Raises:
        ValueError: if an option is out of range, or `density_high` is below `density`.
    """

    level = "density_G"
    serves = False  # it compares the gradients of whole layers

    def __init__(
        self,
        *,
        density: float = 0.01,
        density_high: float | None = None,
        switch_every: int = 10,
        eta: float = 0.5,
        **options: Unpack[SparsifierOptions],
    ) -> None:
        super().__init__(density=density, **options)
        high = check_fraction(
            "density_high", min(1.0, 10 * density) if density_high is None else density_high
        )
        if high < self.density:
            raise ValueError(f"density_high={high!r}: expected at least density={self.density!r}")
        self.set_rule(low=self.density, high=high, switch_every=switch_every, eta=eta)

    def learn(self, counts: list[int], mean_N: Tensor, wire: Wire) -> None:
        self.sum_N += mean_N


REDUCER = Accordion
