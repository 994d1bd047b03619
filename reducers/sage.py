"""SAGE: a threshold that moves every step to steer the density to its target (kljp/sage)."""
# N = elements of the flat vector, P = of the part that this rank selects in, K = elements selected

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
    alone,
    check_fraction,
    ops,
    phase,
    signal_dtype,
)
from sage.reduction import density_schedule as schedules
from sage.reduction import exchange as exchanges


class Sage(Sparsifier):
    """Send |a| ≥ λ_t, where a controller moves λ_t from step to step.

    `--controller sage --exchange padded` is the method of kljp/sage's code; its sampling is
    `--sampling tensor`, and the default that of its authors' later repositories. The other controllers,
    `agree`, the density schedules but `warmup` (Lin et al., 2018) and `accordion` (Agarwal et al., 2021), and
    the other exchanges but `exclusive` (MiCRO, Yoon & Oh, 2023) are ours. Density 1 bypasses the controller
    and sends everything.

    Args:
        density: Target share of the elements to send, in (0, 1].
        controller: The rule that moves λ: `quantile`, to the k-th largest |a|, looked for where the last was
            (from a density of 1/32 on, that of a sample); `feedback` on the density's error; `sage`, as
            published.
        agree: Whether small all-reduces make λ common to all ranks, so that the largest elements of all of
            them are sent; else each rank sends its own largest. `scales`: 8 bytes, with `quantile` 64 once or
            twice, and 1,024 more where the last λ is no guide.
        threshold: λ_0 of `sage` and `feedback`, above 0; by default 1/(2·sqrt(density·n)), and the quantile.
        exchange: How the ranks' selections come together: `padded` or `uneven` gather, or `auto`, the faster
            of these in the first steps; `chunks` of fixed capacity; all-reduce of the `union`; parts of the
            vector `exclusive` to a rank.
        density_schedule: How the target changes: `warmup` by epochs, `linear` or `cosine` by steps,
            `accordion` in critical regimes, `budget` as the link has it.
        density_from: Where `warmup`, `linear` and `cosine` come from (0.25), and the density of `accordion`'s
            critical regimes (ten times `density`).
        density_steps: Steps that `linear` and `cosine` take, 1 or more.
        budget: With the schedule `budget`, what may be used, above 0.
        budget_unit: Of the budget: `bytes` that a rank may send in a second, or `time`, the seconds of
            communication for each second of the rest.
        values: Precision in which values travel.
        sample_seed: Of the controller's samples of the signal.
        sampling: With `controller=sage`, whether every `element` is as likely to be in a sample, or, as in
            kljp/sage, first a `tensor` is drawn and then an element of it.
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
                f"threshold={threshold!r} is λ_0, which the controller quantile has no use for: "
                "leave it out, or say controller=sage or controller=feedback"
            )
        if sampling == "tensor" and (controller != "sage" or exchange == "exclusive"):
            raise ValueError(
                f"sampling='tensor' with controller={controller!r}, exchange={exchange!r}: expected "
                "controller='sage', and not the exchange exclusive, whose parts cut tensors"
            )
        if agree and exchange == "exclusive":
            raise ValueError(
                "agree=True with exchange='exclusive': there each rank looks at a part of the vector of its "
                "own, so that a common λ would not mean the same to them; leave out one or the other"
            )
        self.controller = CONTROLLERS[controller](threshold=threshold, seed=sample_seed)
        self._samples_tensors = sampling == "tensor"
        self.exchange = exchanges.EXCHANGES[exchange]()
        self.target = self._target(density_schedule, density_from, density_steps, budget, budget_unit)
        self._agree = agree
        self._asked = self.density
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
                f"density_schedule={schedule!r} with budget={budget!r}: the schedule budget takes a budget "
                "above 0, and no other takes one"
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
        """Accumulate, and take what the controller selects in the part of the vector that is this rank's."""
        n = grad_N.numel()
        self._asked = density = self.target.now()
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
            agree: Agree = (lambda x_B: wire.mean(x_B, kind="scales")) if self._agree else alone
            own_K, at_K = self.controller.take(grad_P, residual_P, density, agree)
        return own_K, at_K.add_(start)

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        with phase("select"):
            own_K, at_K = self.take(grad_N, residual_N, wire)
        reduced, counts = self.exchange.reduce(
            grad_N if residual_N is None else residual_N,
            own_K,
            at_K,
            wire,
            density=self._asked,
            dtype=self.dtype,
            keep=residual_N is not None,
            out_N=grad_N,
        )
        self.learn(counts, reduced.mean_N, wire)
        return reduced

    def learn(self, counts: list[int], mean_N: Tensor, wire: Wire) -> None:
        parts = wire.world_size if isinstance(self.exchange, exchanges.Exclusive) else 1
        self._selected = sum(counts) * parts / (len(counts) * max(1, mean_N.numel()))
        if self._asked < 1 and mean_N.numel():
            self.controller.learn(self._selected)
        self.target.learn(mean_N, wire)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if self._agree or isinstance(self.target, schedules.Budget):
            return None
        return self.exchange.payload(counts, rank, self.dtype.itemsize, self.target.now(), self.layout.numel)

    def report(self) -> dict[str, float]:
        return {
            "density_asked": self._asked,
            "density_selected": self._selected,
            "threshold": float(self.controller.threshold),
            **self.exchange.report(),
        }


REDUCER = Sage
