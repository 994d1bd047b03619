"""The density that is asked for: fixed, on a schedule, or as the training and the link have it."""
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
    """The same density at every step. The base of the others: state lies in buffers.

    Args:
        density: d, in (0, 1].
        start: The density that a schedule comes from; by default 0.25 (`accordion`: 10·d).
        steps: Over how many steps `linear` and `cosine` come from it to d.
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
        """Called on every rank before an epoch's first step."""
        self.epoch.fill_(epoch)

    def now(self) -> float:
        """What this step is to send; the same on every rank."""
        return self._density

    def learn(self, mean_N: Tensor, wire: Wire) -> None:
        """Hear what came of the step. Called on every rank."""
        self.step += 1


class Warmup(Constant):
    """DGC's (Lin et al., 2018): each epoch a quarter of the last, 25 %, 6.25 %, 1.5625 %, ..., down to d."""

    def now(self) -> float:
        return max(self._density, self._start * 0.25 ** int(self.epoch))


class Linear(Constant):
    """From `start` to d in so many steps, by as much each."""

    def now(self) -> float:
        return self._start + (self._density - self._start) * self.progress()

    def progress(self) -> float:
        """How far from `start` to d, in [0, 1]."""
        return min(1.0, int(self.step) / self._steps)


class Cosine(Linear):
    """From `start` to d in so many steps, along half a cosine."""

    def progress(self) -> float:
        return (1 - math.cos(math.pi * super().progress())) / 2


class Critical(Constant):
    """Accordion (Agarwal et al., 2021, Algorithm 1), the vector as one layer: d outside of critical regimes.

    Inside them it is `start`. It decides every ten epochs, and where the learning rate has fallen. Critical
    are epoch 0, a fall of the learning rate, and | ‖g_prev‖ − ‖g_cur‖ | / ‖g_prev‖ > 0.5, g being the mean
    gradients' sum over the epoch before a decision. Rank 0 decides and broadcasts (`scales`, 8 bytes).
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
        """Make room for the epoch's sum."""
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
    """As much as a budget allows, measured every ten steps and agreed on by the ranks (`control`, 24 bytes).

    The density, which begins at d, is multiplied by sqrt(allowed / used), at most halved or doubled at a
    time, and stays in [1e-5, 1]. It follows the clock, so that such a run cannot be repeated to the bit.

    Args:
        allowed: Bytes that a rank may send in a second; or seconds of communication for a second of the rest.
        unit: `bytes` or `time`.
        clock: Seconds.
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
        # After a resume, as at the first time, there is nothing yet to compare with.
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
"""The schedules by the names that `--density-schedule` gives them; `budget` takes more than these."""
