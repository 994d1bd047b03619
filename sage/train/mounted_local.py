"""`--local-steps`: every rank takes steps by itself, and the changes of the ranks' weights are reduced.

A round is H = `local_steps` steps of the inner optimiser on each rank, with its own gradients and its own
state, and without communication. At its end, the pseudo-gradient Δ_i = θ − θ_i takes the place of a gradient:
the reducer, with its error feedback, takes its mean over ranks, the outer optimiser (`sage.train.outer`)
updates θ, and every rank continues from θ. Local SGD (Stich 2018, https://arxiv.org/abs/1805.09767), SlowMo
and DiLoCo are settings of this (`sage.config.local_presets`; docs/explanation/local-updates.md).

The last step of a run ends its round, so that the final model has all steps. Between two rounds, evaluations,
checkpoints and comparisons of replicas are of θ. With one rank it is Lookahead (Zhang et al. 2019,
https://arxiv.org/abs/1907.08610, algorithm 1) where β = 0.
"""
# N = elements of the flat gradient

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sage.comm.replicas import Replicas
from sage.mount.memory_use import num_state_bytes
from sage.mount.parameters import as_real
from sage.output.units import printable
from sage.reduction.reducer import Reduced
from sage.timing import phase
from sage.train.moments import Moments
from sage.train.mounted import Parts
from sage.train.mounted_whole import MountedWhole
from sage.train.outer import Outer, check_fits


class MountedLocal(MountedWhole):
    """Accumulates a step's gradient into one flat vector, which holds the pseudo-gradient after a round."""

    is_local = True

    def __init__(self, parts: Parts) -> None:
        config, reducer = parts.config, parts.reducer
        if reducer.needs_squares:
            raise ValueError(
                f"the reducer {printable(config.reducer)} needs the squares of the samples' gradients, which "
                f"a pseudo-gradient does not have, but local_steps is {config.local_steps}: use another "
                "reducer, or leave --local-steps out"
            )
        super().__init__(parts)
        named = zip(self.whole.layout.spans, self.whole.parameters_in_order, strict=True)
        self.outer = self._outer({span.name: p for span, p in named})
        self.taken = 0
        """Number of local steps since the last outer step."""
        self.clock = 0
        """Number of all local steps."""
        self.moments: Moments | None = None
        """Averages of the inner optimiser's moments; None: each rank keeps its own."""
        self._has_averaged = False
        self._largest_lr = 0.0
        """The largest learning rate of the round, which SlowMo divides by; that of a step may be 0."""
        self._is_alone = False

    def _outer(self, named: Mapping[str, Tensor]) -> Outer:
        """The outer optimiser of these parameters."""
        return Outer(
            named,
            optimizer=self.config.outer_optimizer,
            lr=self.config.outer_lr or 1.0,
            momentum=self.config.outer_momentum or 0.0,
        )

    # A step.

    @property
    def is_alone(self) -> bool:
        return self._is_alone

    def begin_step(self, step: int) -> None:
        self._is_alone = step >= self.config.local_from

    def _overflowed(self) -> bool:
        """Whether the gradient is not finite: this rank's, or any rank's before the first local step."""
        bad = ~self.whole.grad_N.isfinite().all()
        return bool(bad) if self._is_alone else self._anywhere(bad)

    def _reduce(self, lr: float) -> None:
        """Take the dense mean before the first local step; then leave this rank's gradient as it is."""
        if self._is_alone:
            return
        waited = self.wire.ledger.seconds
        self._reduced = [Reduced(self.wire.mean(self.whole.grad_N))]
        self._exposed = self.wire.ledger.seconds - waited

    def end_step(self, lr: float, *, is_last: bool) -> bool:
        self._has_averaged = False
        if not self._is_alone:
            self.outer.adopt()
            return True
        self.clock += 1
        if self.moments is not None:
            self._has_averaged = self.moments.average(self.clock)
        return self._end_local_step(lr, is_last)

    def _end_local_step(self, lr: float, is_last: bool) -> bool:
        """Exchange what is due after a local step; return whether it is finite, the same on all ranks."""
        self.taken += 1
        self._largest_lr = max(self._largest_lr, lr)
        return self._synchronise() if is_last or self.taken >= (self.config.local_steps or 1) else True

    def _synchronise(self) -> bool:
        """Take the outer step; return whether the mean pseudo-gradient is finite, the same on all ranks."""
        delta_N, waited = self.whole.grad_N, self.wire.ledger.seconds
        scale = self._largest_lr if self.config.outer_by_lr and self._largest_lr else 1.0
        with phase("update"):
            self.outer.pseudo_gradient(delta_N)
            if scale != 1:
                delta_N.div_(scale)
            self.is_finite = bool(delta_N.isfinite().all())
        # What the mean is multiplied by is the learning rate of error feedback.
        self._reduced = [self.error.reduce(self.whole, self.wire, self.outer.lr * scale)]
        self._exposed = self.wire.ledger.seconds - waited
        self.taken, self._largest_lr = 0, 0.0
        if not bool(delta_N.isfinite().all()):
            return False
        with phase("update"):
            self.outer.step(delta_N, scale=scale)
            self.outer.reset()
        return True

    def fields(self) -> dict[str, Any]:
        """Whether the ranks exchanged gradients, pseudo-gradients or moments in this step."""
        return {"communicated": bool(self._reduced) or self._has_averaged}

    def report(self) -> dict[str, float]:
        """Scalars of the reducer; of a step in which it was not used, the density that was asked for."""
        report = super().report()
        if self._reduced and self._is_alone:
            return report
        return {"density_asked": float(not self._is_alone)} if "density_asked" in report else {}

    def state_bytes(self) -> int:
        return num_state_bytes(self.flats, self.outer.kept())

    # What all ranks have in common.

    def replicas(self) -> Replicas:
        return Replicas(self.wire, self.outer.anchors().items())

    @contextmanager
    def common_model(self) -> Iterator[None]:
        if self.taken == 0:  # the weights are θ
            yield
            return
        own = {name: x.clone() for name, x in self._weights().items()}
        self.outer.reset()
        try:
            yield
        finally:
            self._restore(own)

    def _weights(self) -> dict[str, Tensor]:
        """The weights of this rank, by name."""
        return {name: as_real(p.detach()) for name, p in self.outer.named.items()}

    def _restore(self, own: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, x in self._weights().items():
                x.copy_(own[name])

    # Checkpoints: the model is θ, and each rank has its own weights within a round.

    def gathered(self, shared: dict[str, Any], trained: Sequence[Tensor]) -> dict[str, Any]:
        """Return the shared state with the weights θ and the outer momentum.

        The state of the inner optimiser is in each rank's own state.
        """
        with self.common_model():
            model = {name: x.clone() for name, x in shared["model"].items()}
        optimizer = {**shared["optimizer"], "state": {}}
        return {**shared, "model": model, "optimizer": optimizer, "outer": self.outer.state_dict()}

    def scattered(self, shared: dict[str, Any], trained: Sequence[Tensor]) -> dict[str, Any]:
        """Restore the outer momentum, and return the shared state."""
        self.outer.load_state_dict(shared["outer"])
        return shared

    def state_dict(self) -> dict[str, dict[str, Any]]:
        local = {
            "taken": self.taken,
            "clock": self.clock,
            "largest_lr": self._largest_lr,
            "weights": self._weights() if self.taken else {},
        }
        return {**super().state_dict(), "local": local}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Restore what `state_dict` returned, once the weights of the model are θ."""
        super().load_state_dict(state)
        self.outer.adopt()
        local = state["local"]
        self.taken, self._largest_lr = local["taken"], local["largest_lr"]
        self.clock = local.get("clock", self.taken)
        if local["weights"]:
            check_fits("the weights within a round", local["weights"], self._weights())
            self._restore(local["weights"])
