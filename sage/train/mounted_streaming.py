"""`--fragments`: parts of the model are exchanged after different local steps (Streaming DiLoCo).

Fragment p of P is exchanged after each local step t with (t − t_p) mod H = 0, where the first of these
steps, t_p, are spread evenly over H = `local_steps` (`sage.train.fragments.first_steps`). Its pseudo-gradient
Δ_{i,p} = θ_p − θ_{i,p}, its mean over ranks and its outer step are those of `sage.train.mounted_local`. A
rank takes the result over τ = `fragment_sync_delay` steps later, and in part:

    θ_{i,p} <- α θ_{i,p} + (1 − α) θ_p        α = `fragment_update_alpha`

(Douillard et al. 2025, https://arxiv.org/abs/2501.18512, algorithm 2, as a secondary source states it; the
names and the meaning of α are those of torchft's `local_sgd.py`.) The delay is that of the algorithm only:
the exchange runs at step t, and no computation overlaps with it. With P = 1, τ = 0 and α = 0, a run is that
of `sage.train.mounted_local` to the bit.

The last step of a run takes over what is delayed, and then exchanges every fragment once, without delay and
with α = 0, so that the final model has all steps and is the same on all ranks.
"""
# N = elements of the flat gradient

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sage.mount.flat import Flat
from sage.mount.origins import origins
from sage.mount.parameters import real_shape, trainable
from sage.mount.reduction_seconds import fields_of_sum
from sage.timing import phase
from sage.train.fragments import JoinedOuter, first_steps, fragments_of, mix
from sage.train.mounted import Parts
from sage.train.mounted_local import MountedLocal
from sage.train.outer import Outer, check_fits
from sage.train.schedules import memory_options


@dataclass(frozen=True, eq=False)
class Fragment:
    """A part of the model that is exchanged by itself."""

    outer: Outer
    """Its weights θ_p and their outer optimiser."""
    flat: Flat
    """Its pseudo-gradient, with a reducer and error feedback of its own."""
    first: int
    """Number of local steps after which it is first exchanged, t_p."""

    def last_exchange(self, clock: int, period: int) -> int | None:
        """Number of local steps after which it was last exchanged, `clock` among them; None: never."""
        return clock - (clock - self.first) % period if clock >= self.first else None


class MountedStreaming(MountedLocal):
    """Local updates with fragments.

    Raises:
        ValueError: The model cannot be divided into so many fragments.
    """

    def __init__(self, parts: Parts) -> None:
        # The flat vector of the whole gradient has no residual: only those of the fragments are reduced.
        super().__init__(replace(parts, config=replace(parts.config, memory="none")))
        self.config = config = parts.config
        self._period = config.local_steps or 1
        named, spans = trainable(parts.model), self.whole.layout.spans
        places = origins(named, parts.reducer, config.min_compress)
        self.fragments: list[Fragment] = []
        assigned = fragments_of(list(named), config.fragments, config.fragment_order)
        for names, first in zip(assigned, first_steps(len(assigned), self._period), strict=True):
            ordered = [span.name for span in spans if span.name in set(names)]
            flat = Flat(
                [(name, real_shape(named[name])) for name in ordered],
                copy.deepcopy(parts.reducer),
                dtype=self.whole.grad_N.dtype,
                device=self.device,
                memory=config.memory,
                memory_options=memory_options(config),
                grouping=config.grouping,
                min_compress=config.min_compress,
                always={name for name in ordered if named[name].is_complex()},
                origins=places,
            )
            outer = self._outer({name: named[name] for name in ordered})
            self.fragments.append(Fragment(outer, flat, first))
        self.outer = JoinedOuter([fragment.outer for fragment in self.fragments])
        self.flats = [fragment.flat for fragment in self.fragments]
        self._exchanged: list[Flat] = []
        """The fragments that this step exchanged."""

    @property
    def gradient(self) -> list[Tensor]:
        return [self.whole.grad_N]

    # A step.

    def end_step(self, lr: float, *, is_last: bool) -> bool:
        self._exchanged = []
        return super().end_step(lr, is_last=is_last)

    def _end_local_step(self, lr: float, is_last: bool) -> bool:
        config = self.config
        for fragment in self.fragments:
            last = fragment.last_exchange(self.clock - 1, self._period)
            waited = 0 if last is None else self.clock - last
            if 0 < waited == config.fragment_sync_delay or (
                is_last and 0 < waited < config.fragment_sync_delay
            ):
                mix(fragment.outer, config.fragment_update_alpha)
        for fragment in self.fragments:
            if is_last or fragment.last_exchange(self.clock, self._period) == self.clock:
                if not self._exchange(fragment):
                    return False
                if is_last:
                    fragment.outer.reset()
                elif config.fragment_sync_delay == 0:
                    mix(fragment.outer, config.fragment_update_alpha)
        last_exchanges = [
            fragment.last_exchange(self.clock, self._period) or 0 for fragment in self.fragments
        ]
        self.taken = 0 if is_last else self.clock - min(last_exchanges)
        return True

    def _exchange(self, fragment: Fragment) -> bool:
        """Take a fragment's outer step; return whether its mean pseudo-gradient is finite."""
        flat, outer, waited = fragment.flat, fragment.outer, self.wire.ledger.seconds
        flat.fit(self.whole.grad_N)
        with phase("update"):
            outer.pseudo_gradient(flat.grad_N)
            self.is_finite = bool(flat.grad_N.isfinite().all())
        self._reduced.append(self.error.reduce(flat, self.wire, outer.lr))
        self._exchanged.append(flat)
        self._exposed = (self._exposed if len(self._reduced) > 1 else 0.0) + self.wire.ledger.seconds - waited
        if not bool(flat.grad_N.isfinite().all()):
            return False
        with phase("update"):
            outer.step(flat.grad_N)
        return True

    # The record of a step.

    def density(self) -> float:
        """Share of all compressed elements that the step sent, mean over ranks."""
        if not self._exchanged:
            return sum((reduced.density for reduced in self._reduced), 0.0)
        return self._share([reduced.density for reduced in self._reduced])

    def _share(self, densities: list[float]) -> float:
        """Share of all compressed elements, given those of the fragments that the step exchanged."""
        sizes = [flat.compressed.numel for flat in self._exchanged]
        sent = sum(density * size for density, size in zip(densities, sizes, strict=True))
        return sent / max(1, sum(flat.compressed.numel for flat in self.flats))

    def report(self) -> dict[str, float]:
        """Scalars of the reducer if there is one fragment, and else the density that was asked for."""
        if len(self.flats) == 1:
            return super().report()
        asked = [
            flat.feedback.reducer.report().get("density_asked") for flat in self._exchanged or self.flats
        ]
        known = [density for density in asked if density is not None]
        if len(known) < len(asked):
            return {}
        return {"density_asked": self._share(known) if self._exchanged else float(not self._is_alone)}

    def seconds(self) -> dict[str, float]:
        if not self._exchanged:
            return super().seconds()
        fields = fields_of_sum([flat.seconds for flat in self._exchanged])
        return fields if self.whole.grad_N.is_cuda else {**fields, "exposed_seconds": self._exposed}

    # What all ranks have in common, and checkpoints.

    @contextmanager
    def common_model(self) -> Iterator[None]:
        own = {name: x.clone() for name, x in self._weights().items()}
        self.outer.reset()
        try:
            yield
        finally:
            self._restore(own)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        feedback = {str(number): flat.feedback.state_dict() for number, flat in enumerate(self.flats)}
        local = {"taken": self.taken, "largest_lr": 0.0, "weights": self._weights(), "clock": self.clock}
        return {"feedback": feedback, "before": self.before.state_dict(), "local": local}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        for number, flat in enumerate(self.flats):
            flat.feedback.load_state_dict(state["feedback"][str(number)])
        self.before.load_state_dict(state["before"])
        self.outer.adopt()
        local = state["local"]
        self.taken, self.clock = local["taken"], local["clock"]
        if local["weights"]:
            check_fits("the weights within a round", local["weights"], self._weights())
            self._restore(local["weights"])
