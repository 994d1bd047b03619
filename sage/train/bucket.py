"""A part of the gradient that a mount reduces separately, with its own reducer and state."""
# N = elements of the part

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sage.comm.levels import Levels
from sage.comm.wire import Wire
from sage.config import Config
from sage.mount import state
from sage.mount.flat import Flat
from sage.mount.step import is_finite
from sage.reduction.layout import Origin
from sage.reduction.reducer import Reduced, Reducer
from sage.train.optim import clip_
from sage.train.schedules import before_reduction, memory_options


class Bucket:
    """A flat gradient with its own reducer, error feedback and momentum; a step has several of them.

    Args:
        config: Options of error feedback, momentum, decay and clipping are read from it.
        named: Parameters by name; their shapes are those of the gradient.
        reducer: Copied; not yet bound.
        shapes: Shape of each real gradient by name, in the order in which it is received.
        dtype: Dtype of the gradient.
        always: Names of parameters that are compressed even if they are small.
        origins: Where each parameter is in the vector of the whole model, by name.
        levels: The wires of two levels; None: the reduction is between all ranks.
    """

    def __init__(
        self,
        config: Config,
        named: Mapping[str, Tensor],
        reducer: Reducer,
        *,
        shapes: Mapping[str, Sequence[int]],
        dtype: torch.dtype,
        always: set[str],
        origins: Mapping[str, Origin],
        levels: Levels | None = None,
    ) -> None:
        self.flat = Flat(
            list(shapes.items()),
            copy.deepcopy(reducer),
            dtype=dtype,
            device=next(iter(named.values())).device,
            memory=config.memory,
            memory_options=memory_options(config),
            grouping=config.grouping,
            min_compress=config.min_compress,
            always=always,
            origins=origins,
            levels=levels,
        )
        self.names = [span.name for span in self.flat.layout.spans]
        """Names of the parameters in the order of the flat gradient."""
        self.before = before_reduction(config, [named[name] for name in self.names])
        self._clips = config.clip_local, config.clip_local_by_world
        self._saved: dict[str, Tensor] | None = None
        self._kept_m_N = torch.empty(0)
        self.is_finite = True
        """Whether this rank's gradient was finite in the last step; known only if it was checked."""
        self.reduced: Reduced | None = None
        """Result of the last reduction."""

    def prepare(self, scale: float | None, wire: Wire, *, checked: bool) -> None:
        """Apply loss scale, decay, momentum and clipping to this rank's gradient before its reduction.

        A gradient that is not finite is replaced by zeros, so that the reducer runs on finite numbers until
        the ranks agree to skip the step.

        Args:
            scale: The loss scale, by which the gradient is divided; None: no loss scale.
            wire: Provides the number of ranks.
            checked: Whether the step may be skipped: keep a copy of all state, for `put_back`.
        """
        grad_N = self.flat.grad_N
        if scale is not None:
            grad_N.div_(scale)
        if checked:
            self.is_finite = is_finite(grad_N)
            if not self.is_finite:
                grad_N.zero_()
            self._save()
        if self.before.m_N is not None or self.before.weight_decay:
            self.before(grad_N)
        limit, by_world = self._clips
        if limit is not None:  # there is only one bucket
            clip_([grad_N], limit, world_size=wire.world_size if by_world else 1)

    def reduce(self, wire: Wire, lr: float) -> None:
        """Replace the flat gradient by the mean over ranks of what was sent."""
        self.reduced = self.flat(wire, lr)

    def _save(self) -> None:
        self._saved = self.flat.save()
        if self.before.m_N is not None:
            self._kept_m_N = self.before.m_N.clone()

    def put_back(self) -> None:
        """Restore the state of reducer, error feedback and momentum as before the step."""
        assert self._saved is not None
        self.flat.put_back(self._saved)
        if self.before.m_N is not None:
            self.before.m_N.copy_(self._kept_m_N)

    # State by parameter, as in `sage.mount.state`.

    def feedback_state(self) -> state.State:
        """State of the reducer and error feedback of each compressed parameter, by name."""
        return state.by_parameter(self.flat)

    def load_feedback_state(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `feedback_state` returned, also of other buckets."""
        state.restore(self.flat, saved)

    def momentum_state(self) -> dict[str, Tensor]:
        """Momentum before the reduction of each parameter, by name; empty without it."""
        m_N = self.before.m_N
        if m_N is None:
            return {}
        return {span.name: m_N[span.start : span.stop] for span in self.flat.layout.spans}

    def load_momentum_state(self, saved: Mapping[str, Tensor]) -> None:
        """Restore what `momentum_state` returned, also of other buckets."""
        if self.before.m_N is not None:
            self.before.m_N.copy_(torch.cat([saved[name].reshape(-1) for name in self.names]))
