"""One bucket of `--mount ddp`: its flat gradient, with a reducer, error feedback and momentum of its own."""
# N = elements of the bucket

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sage.comm.wire import Wire
from sage.config import Config
from sage.mount import state
from sage.mount.buckets import gradients_of
from sage.mount.flat import Flat
from sage.mount.parameters import real_dtype, real_shape
from sage.mount.step import is_finite
from sage.reduction.reducer import Reduced, Reducer
from sage.train.optim import clip_
from sage.train.schedules import before_reduction, memory_options


class DdpBucket:
    """A bucket's gradient, from DDP's buffer to the mean and into each parameter's `.grad`.

    If the reducer takes the parameters in the order of DDP's buffer, the buffer is the flat gradient, and
    nothing is copied. If small tensors are sent dense, they are at the end of the flat gradient, so gradients
    are copied into it; `.grad` then becomes a view of it.

    Args:
        config: Options of error feedback, momentum, decay and clipping are read from it.
        named: The bucket's parameters by name, in the order of DDP's buffer.
        reducer: Copied; not yet bound.
    """

    def __init__(self, config: Config, named: Mapping[str, nn.Parameter], reducer: Reducer) -> None:
        first = next(iter(named.values()))
        self.flat = Flat(
            [(name, real_shape(p)) for name, p in named.items()],
            copy.deepcopy(reducer),
            dtype=real_dtype(first),
            device=first.device,
            memory=config.memory,
            memory_options=memory_options(config),
            grouping=config.grouping,
            min_compress=config.min_compress,
            always={name for name, p in named.items() if p.is_complex()},
        )
        names = [span.name for span in self.flat.layout.spans]
        self._names, self._in_order = names, [named[name] for name in names]
        self.before = before_reduction(config, self._in_order)
        self._clips = config.clip_local, config.clip_local_by_world
        self._is_in_place = names == list(named) and all(p.is_contiguous() for p in named.values())
        views = self.flat.views()
        self._views = [] if self._is_in_place else [views[name] for name in named]
        self._saved: dict[str, Tensor] | None = None
        self._kept_m_N = torch.empty(0)
        self.is_finite = True
        """Whether this rank's gradient was finite in the last step; known only if it was checked."""
        self.reduced: Reduced | None = None
        """Result of the last reduction."""

    def receive(self, bucket: dist.GradBucket) -> list[Tensor]:
        """Return what `load` needs of a bucket that DDP passes to its hook."""
        return [bucket.buffer()] if self._is_in_place else gradients_of(bucket)

    def load(self, received: list[Tensor]) -> None:
        """Set the flat gradient to DDP's."""
        if self._is_in_place:
            if received[0].data_ptr() != self.flat.grad_N.data_ptr():  # DDP keeps its buffers
                self.flat.use(received[0])
        else:
            torch._foreach_copy_(self._views, received)

    def prepare(self, scale: float | None, wire: Wire, *, checked: bool) -> None:
        """Do to this rank's gradient what precedes its reduction.

        A gradient that is not finite is replaced by zeros, so that the reducer runs on finite numbers until
        the ranks agree to skip the step.

        Args:
            scale: The loss scale, by which the gradient is divided; None: none.
            wire: Has the number of ranks.
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

    def hand_over(self) -> None:
        """Make each `.grad` a view of the mean; with DDP's buffer as the flat gradient it is one already."""
        if self._views:
            for p, view in zip(self._in_order, self.flat.views().values(), strict=True):
                p.grad = torch.view_as_complex(view) if p.is_complex() else view

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
            self.before.m_N.copy_(torch.cat([saved[name].reshape(-1) for name in self._names]))
