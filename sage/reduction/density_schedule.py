"""Target density of each step: constant, scheduled, or adapted to training or to the network."""
# N = elements of the vector

import math
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from sage.comm.wire import Wire

Name = Literal["constant", "warmup", "linear", "cosine", "accordion", "budget"]


class Constant(nn.Module):
    """The same density at every step; base class of the schedules. State is held in buffers.

    Args:
        density: Target density d, in (0, 1].
        start: Initial density of a schedule; by default 0.25 (`accordion`: 10·d).
        steps: Number of steps in which `linear` and `cosine` go from `start` to d.
    """

    step: Tensor
    epoch: Tensor

    def __init__(self, density: float, *, start: float | None = None, steps: int = 1000) -> None:
        super().__init__()
        self._density = density
        self._start = max(density, 0.25) if start is None else start
        self._steps = steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def begin_epoch(self, epoch: int, lr: float, wire: Wire) -> None:
        """Called on every rank before the first step of an epoch."""
        self.epoch.fill_(epoch)

    def now(self) -> float:
        """Target density of this step; the same on every rank."""
        return self._density

    def learn(self, mean_N: Tensor, wire: Wire) -> None:
        """Called on every rank after a step with its mean."""
        self.step += 1


class Warmup(Constant):
    """DGC's warm-up (Lin et al., 2018): the density is divided by 4 each epoch, from 25 % down to d."""

    def now(self) -> float:
        return max(self._density, self._start * 0.25 ** int(self.epoch))


class Geometric(Constant):
    """The warm-up of DGC's code: d^((t+1)/(E+1)) in epoch t, for E epochs, and then d.

    It is in synxlin/deep-gradient-compression, commit b929ca7, dgc/compression.py.

    Args:
        density: Target density d, in (0, 1].
        epochs: E, 1 or more.
    """

    def __init__(self, density: float, *, epochs: int) -> None:
        super().__init__(density)
        self._epochs = epochs

    def now(self) -> float:
        epoch = int(self.epoch)
        return self._density ** min(1.0, (epoch + 1) / (self._epochs + 1))


class Linear(Constant):
    """Linear from `start` to d in the given number of steps."""

    def now(self) -> float:
        return self._start + (self._density - self._start) * self.progress()

    def progress(self) -> float:
        """Progress from `start` to d, in [0, 1]."""
        return min(1.0, int(self.step) / self._steps)


class Cosine(Linear):
    """Half a cosine from `start` to d in the given number of steps."""

    def progress(self) -> float:
        return (1 - math.cos(math.pi * super().progress())) / 2


class Critical(Constant):
    """Accordion (Agarwal et al., 2021, Algorithm 1) with the vector as one layer.

    The density is d outside critical regimes and `start` inside them. It is decided every ten epochs and when
    the learning rate has dropped. Critical are epoch 0, a drop of the learning rate, and | ‖g_prev‖ − ‖g_cur‖
    | / ‖g_prev‖ > 0.5, where g is the sum of the mean gradients over the epoch before a decision. Rank 0
    decides and broadcasts (`scales`, 8 bytes).
    """

    EVERY, ETA = 10, 0.5
    current: Tensor
    norm: Tensor
    last_lr: Tensor
    sum_N: Tensor

    def __init__(self, density: float, *, start: float | None = None, steps: int = 1000) -> None:
        super().__init__(density, start=min(1.0, 10 * density) if start is None else start)
        for name, value in (("current", self._start), ("norm", 0.0), ("last_lr", 0.0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    def bind(self, numel: int) -> None:
        """Allocate the sum of an epoch's gradients (N)."""
        self.register_buffer("sum_N", torch.zeros(numel))

    def begin_epoch(self, epoch: int, lr: float, wire: Wire) -> None:
        super().begin_epoch(epoch, lr, wire)
        fell = lr < float(self.last_lr)
        self.last_lr.fill_(lr)
        if epoch % self.EVERY == 0 or fell:
            norm = float(self.sum_N.norm())
            changed = abs(float(self.norm) - norm) > self.ETA * float(self.norm)
            self.current.fill_(self._start if epoch == 0 or fell or changed else self._density)
            self.norm.fill_(norm)
            wire.broadcast(self.current, root=0, kind="scales")
        self.sum_N.zero_()

    def now(self) -> float:
        return float(self.current)

    def learn(self, mean_N: Tensor, wire: Wire) -> None:
        super().learn(mean_N, wire)
        self.sum_N += mean_N


class Budget(Constant):
    """Adapts the density to a budget, measured every ten steps and summed over ranks (`control`, 24 bytes).

    The density starts at d. It is multiplied by sqrt(allowed / used), limited to [0.5, 2], and stays in
    [1e-5, 1]. It depends on measured time, so a run with it is not bitwise reproducible.

    Args:
        density: Initial density, in (0, 1].
        allowed: Bytes that a rank may send per second, or seconds of communication per second of everything
            else.
        unit: `bytes` or `time`.
        clock: Function that returns seconds.
    """

    EVERY = 10
    current: Tensor

    def __init__(
        self,
        density: float,
        *,
        allowed: float,
        unit: Literal["bytes", "time"],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(density)
        self._allowed, self._unit, self._clock = allowed, unit, clock
        self._since: tuple[float, float, float] | None = None
        self.register_buffer("current", torch.tensor(density, dtype=torch.float64))

    def now(self) -> float:
        return float(self.current)

    def learn(self, mean_N: Tensor, wire: Wire) -> None:
        super().learn(mean_N, wire)
        if int(self.step) % self.EVERY:
            return
        now = self._clock(), wire.ledger.seconds, float(wire.ledger.sent)
        # At the first measurement of a run or of a resumed run there is no earlier one.
        before, self._since = self._since or now, now
        used = torch.tensor([b - a for a, b in zip(before, now, strict=True)], dtype=torch.float64)
        seconds, comm_seconds, sent = wire.sum(used.to(mean_N.device), kind="control").tolist()
        share = (
            sent / max(seconds, 1e-9)
            if self._unit == "bytes"
            else comm_seconds / max(seconds - comm_seconds, 1e-9)
        )
        if share > 0:
            factor = max(0.5, min(2.0, math.sqrt(self._allowed / share)))
            self.current.mul_(factor).clamp_(1e-5, 1.0)


SCHEDULES: dict[str, type[Constant]] = {
    "constant": Constant,
    "warmup": Warmup,
    "linear": Linear,
    "cosine": Cosine,
    "accordion": Critical,
}
"""The schedules by their names in `--density-schedule`; `budget` takes more arguments than these."""
