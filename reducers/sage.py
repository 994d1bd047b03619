"""SAGE: adapts a threshold at every step so that the density stays at its target (kljp/sage)."""
# N = elements of the flat vector, P = elements of this rank's part of it, K = elements selected

import math
from typing import Literal

import torch
from torch import Tensor

from sage.reduction import (
    CONTROLLERS,
    Agree,
    Layout,
    Published,
    Reduced,
    Sparsifier,
    Wire,
    check_fraction,
    local_only,
    ops,
    phase,
    signal_dtype,
)
from sage.reduction import density_schedule as schedules
from sage.reduction import exchange as exchanges


class Sage(Sparsifier):
    """Send |a| ≥ λ_t, where a controller updates λ_t at every step.

    `--controller sage --exchange padded` is the method of kljp/sage's code; its sampling is `--sampling
    tensor`, and the default sampling is that of its authors' later repositories. Ours are the other
    controllers, `agree`, the density schedules except `warmup` (Lin et al., 2018) and `accordion` (Agarwal et
    al., 2021), and the other exchanges except `exclusive` (MiCRO, Yoon & Oh, 2023). Density 1 bypasses the
    controller and sends everything.

    Args:
        density: Target share of the elements to send, in (0, 1].
        controller: Rule that updates λ: `quantile` sets it to the k-th largest |a|, searched near the last λ
            (from a density of 1/32 on, to that of a sample); `feedback` corrects the error of the density;
            `sage` is the published rule.
        agree: Whether small all-reduces give all ranks a common λ, so that the largest elements over all
            ranks are sent; if not, each rank sends its own largest elements. Payload bytes per step
            (`scales`): 8; with `quantile` 64 once or twice, and 1,024 more if the new λ is far from the last.
        threshold: Initial λ of `sage` and `feedback`, above 0; by default 1/(2·sqrt(density·n)) for `sage`,
            the signal's quantile for `feedback`.
        exchange: How the ranks' selections are combined: `padded` or `uneven` all-gather; `auto`, the faster
            of these two in the first steps; `chunks` of fixed capacity; all-reduce over the `union` of the
            indices; parts of the vector `exclusive` to one rank.
        density_schedule: How the target density changes: `constant`; `warmup` by epochs; `linear` or `cosine`
            by steps; `accordion` in critical regimes; `budget` by measured bytes or time.
        density_from: First density of `warmup`, `linear` and `cosine` (by default 0.25), and the density of
            `accordion` in critical regimes (by default ten times `density`).
        density_steps: Number of steps of `linear` and `cosine`, 1 or more.
        budget: Limit of the schedule `budget`, above 0, in the unit below.
        budget_unit: Unit of the budget: `bytes` that a rank may send per second, or `time`, seconds of
            communication per second of everything else.
        values: Precision in which values are sent.
        sample_seed: Seed of the controller's samples of the signal.
        sampling: How `controller=sage` samples: every `element` is equally likely, or, as in kljp/sage, a
            `tensor` is drawn first and then one of its elements.

    Raises:
        ValueError: if an option is out of range, or options contradict each other.
    """

    even = False
    later = frozenset({"sampling"})
    selections: Tensor

    def __init__(
        self,
        *,
        density: float = 0.01,
        controller: Literal["quantile", "feedback", "sage"] = "quantile",
        agree: bool = False,
        threshold: float | None = None,
        exchange: exchanges.Name = "padded",
        density_schedule: schedules.Name = "constant",
        density_from: float | None = None,
        density_steps: int = 1000,
        budget: float | None = None,
        budget_unit: Literal["bytes", "time"] = "bytes",
        values: Literal["fp32", "fp16"] = "fp32",
        sample_seed: int = 0,
        sampling: Literal["element", "tensor"] = "element",
    ) -> None:
        super().__init__(values=values)
        self.density = check_fraction("density", density)
        if threshold is not None and not 0 < threshold < math.inf:
            raise ValueError(f"threshold={threshold!r}: expected a finite number above 0")
        for name, value, allowed in (
            ("controller", controller, CONTROLLERS),
            ("exchange", exchange, exchanges.EXCHANGES),
            ("density_schedule", density_schedule, {**schedules.SCHEDULES, "budget": None}),
            ("sampling", sampling, ("element", "tensor")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: expected {', '.join(allowed)}")
        if threshold is not None and controller == "quantile":
            raise ValueError(
                f"threshold={threshold!r} with controller='quantile': this controller has no initial "
                "threshold; omit it, or choose controller=sage or controller=feedback"
            )
        if sampling == "tensor" and (controller != "sage" or exchange == "exclusive"):
            raise ValueError(
                f"sampling='tensor' with controller={controller!r}, exchange={exchange!r}: expected "
                "controller='sage' and an exchange other than exclusive, whose parts split tensors"
            )
        if agree and exchange == "exclusive":
            raise ValueError(
                "agree=True with exchange='exclusive': each rank selects from a part of its own, to which a "
                "common threshold does not apply; use only one of the two"
            )
        self.controller = CONTROLLERS[controller](threshold=threshold, seed=sample_seed)
        self._samples_tensors = sampling == "tensor"
        self.exchange = exchanges.EXCHANGES[exchange]()
        self.target = self._target(density_schedule, density_from, density_steps, budget, budget_unit)
        self._agree = agree
        self._target_density = self.density
        self._selected = 0.0
        self.register_buffer("selections", torch.zeros((), dtype=torch.int64))

    def _target(
        self,
        schedule: schedules.Name,
        start: float | None,
        steps: int,
        budget: float | None,
        unit: Literal["bytes", "time"],
    ) -> schedules.Constant:
        if start is not None and check_fraction("density_from", start) < self.density:
            raise ValueError(f"density_from={start!r}: expected at least density={self.density!r}")
        if steps < 1:
            raise ValueError(f"density_steps={steps!r}: expected 1 step or more")
        if (schedule == "budget") != (budget is not None) or (budget is not None and not budget > 0):
            raise ValueError(
                f"density_schedule={schedule!r} with budget={budget!r}: density_schedule='budget' requires a "
                "budget above 0; other schedules take none"
            )
        if budget is not None:
            return schedules.Budget(self.density, allowed=budget, unit=unit)
        return schedules.SCHEDULES[schedule](self.density, start=start, steps=steps)

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        if self._samples_tensors and isinstance(self.controller, Published):
            self.controller.sample_by_tensor([(span.start, span.stop) for span in layout.spans])
        if isinstance(self.target, schedules.Critical):
            self.target.bind(layout.numel)

    def begin_epoch(self, epoch: int, lr: float, wire: Wire) -> None:
        self.target.begin_epoch(epoch, lr, wire)

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        """Accumulate the signal and take what the controller selects in this rank's part of the vector."""
        n = grad_N.numel()
        self._target_density = density = self.target.now()
        start, stop = self.exchange.partition(n, int(self.selections), wire)
        self.selections += 1
        grad_P, residual_P = grad_N[start:stop], None
        if residual_N is not None:
            residual_P = residual_N[start:stop]
            for other in (slice(0, start), slice(stop, n)):
                residual_N[other] += grad_N[other]
        if density == 1:
            dtype = signal_dtype(grad_P, residual_P)
            own_K, at_K = ops.take_above(grad_P, residual_P, 0.0, dtype=dtype)
        else:
            agree: Agree = (lambda x_B: wire.mean(x_B, kind="scales")) if self._agree else local_only
            own_K, at_K = self.controller.take(grad_P, residual_P, density, agree)
        return own_K, at_K.add_(start)

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        with phase("select"):
            own_K, at_K = self.take(grad_N, residual_N, wire)
        selection = exchanges.Selection(
            signal_N=grad_N if residual_N is None else residual_N,
            own_K=own_K,
            at_K=at_K,
            density=self._target_density,
            dtype=self.dtype,
            keep=residual_N is not None,
            out_N=grad_N,
        )
        reduced, counts = self.exchange.reduce(selection, wire)
        self.learn(counts, reduced.mean_N, wire)
        return reduced

    def learn(self, counts: list[int], mean_N: Tensor, wire: Wire) -> None:
        parts = wire.world_size if isinstance(self.exchange, exchanges.Exclusive) else 1
        self._selected = sum(counts) * parts / (len(counts) * max(1, mean_N.numel()))
        if self._target_density < 1 and mean_N.numel():
            self.controller.learn(self._selected)
        self.target.learn(mean_N, wire)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if self._agree or isinstance(self.target, schedules.Budget):
            return None
        return self.exchange.payload(counts, rank, self.dtype.itemsize, self.target.now(), self.layout.numel)

    def report(self) -> dict[str, float]:
        return {
            "density_asked": self._target_density,
            "density_selected": self._selected,
            "threshold": float(self.controller.threshold),
            **self.exchange.report(),
        }


REDUCER = Sage
