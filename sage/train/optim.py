"""Learning rate, optimiser, and what is done to the gradient before it is reduced.

Weight decay, momentum and clipping may each stand before or after the reduction, and the order changes what
error feedback remembers. The default is after, as in PowerSGD (Vogels, Karimireddy, Jaggi 2019,
https://arxiv.org/abs/1905.13727, algorithm 2); before is dist-EF-SGDM (Zheng, Huang, Kwok 2019,
https://arxiv.org/abs/1905.10936), which BytePS follows.
"""

# N = elements of the flat gradient, all parameters end to end

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def peak_scale(lr_scale: float, world_size: int) -> float:
    """By how much the learning rate grows over the warm-up: max(1, lr_scale W).

    The linear scaling rule of Goyal et al. 2017 (https://arxiv.org/abs/1706.02677, section 2.1), where
    `lr_scale` is one worker's batch over the batch that `lr` was tuned for: 256/128 for the CNNs. An
    `lr_scale` of 0 scales nothing.
    """
    return max(1.0, lr_scale * world_size)


def schedule(
    step: int,
    *,
    lr: float,
    peak_scale: float,
    start_scale: float = 1.0,
    warmup_steps: int,
    kind: str,
    steps_per_epoch: int,
    total_steps: int,
    milestones: Sequence[float] = (),
    factor: float = 0.1,
    lr_decay: float = 0.0,
    decay_from: float = 6.0,
) -> float:
    """The learning rate of one step: warm-up from `start_scale` to `peak_scale`, then a course downwards.

    The courses, as multiples of the peak:

    - `constant`: 1
    - `step`: `factor` once more at each of the `milestones`, which are in epochs
    - `cosine`: (1 + cos(pi t)) / 2, t running from 0 at the end of the warm-up to 1 at `total_steps`
    - `decay`: (1 / (1 + lr_decay))^max(epoch - decay_from, 0), once an epoch

    It depends on nothing but its arguments, so a resumed run needs no state for it.

    >>> schedule(25, lr=0.1, peak_scale=2, warmup_steps=10, kind="step", steps_per_epoch=10, total_steps=30,
    ...          milestones=(2,), factor=0.5)
    0.1
    """
    if step < warmup_steps:
        return lr * (start_scale + (peak_scale - start_scale) * step / warmup_steps)
    peak = lr * peak_scale
    match kind:
        case "constant":
            return peak
        case "step":
            return peak * factor ** sum(step >= milestone * steps_per_epoch for milestone in milestones)
        case "cosine":
            progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
            return peak * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        case "decay":
            return peak / math.pow(1 + lr_decay, max(step // steps_per_epoch - decay_from, 0))
    raise ValueError(f"no learning-rate schedule {kind!r}: choose constant, step, cosine or decay")


def build_optimizer(
    model: nn.Module,
    *,
    kind: str,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay_norms: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """The optimiser that runs after the reduction, with decayed and undecayed parameters in two groups.

    Without `decay_norms` the parameters of one dimension (scales and shifts of the norms, biases) get no
    weight decay.
    """
    decayed = [p for p in model.parameters() if _decays(p, decay_norms)]
    undecayed = [p for p in model.parameters() if not _decays(p, decay_norms)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    match kind:
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, foreach=True)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=betas, foreach=True)
    raise ValueError(f"no optimiser {kind!r}: choose sgd or adam")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of the optimiser this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _decays(parameter: Tensor, decay_norms: bool) -> bool:
    return decay_norms or parameter.dim() > 1


class BeforeReduction(nn.Module):
    """Weight decay and momentum on this rank's own gradient, before it is reduced.

    With weights x, decay w and momentum mu (BytePS; without `nesterov`, the heavy ball):

        g <- g + w x
        m <- mu m + g
        p  = g + mu m    (nesterov)      p = m    (heavy ball)

    and p is what is reduced. The optimiser's own momentum and weight decay are then to be 0. A gradient that
    is not finite would stay in m for ever, so the ranks agree to skip such a step before they come here.

    Args:
        parameters: in the order in which they lie in the flat gradient.
    """

    m_N: Tensor | None

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay_norms: bool = True,
    ) -> None:
        super().__init__()
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        sizes = [p.numel() for p in parameters]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.decayed = [
            (start, p) for start, p in zip(starts, parameters, strict=True) if _decays(p, decay_norms)
        ]
        m_N = parameters[0].new_zeros(sum(sizes), requires_grad=False) if momentum else None
        self.register_buffer("m_N", m_N)

    @torch.no_grad()
    def forward(self, g_N: Tensor) -> Tensor:
        """Turn the flat gradient into what is reduced, in place, and return it."""
        if self.weight_decay:
            for start, p in self.decayed:
                g_N[start : start + p.numel()].view_as(p).add_(p, alpha=self.weight_decay)
        if self.m_N is not None:
            self.m_N.mul_(self.momentum).add_(g_N)
            if self.nesterov:
                g_N.add_(self.m_N, alpha=self.momentum)
            else:
                g_N.copy_(self.m_N)
        return g_N


@torch.no_grad()
def clip_(g_N: Tensor, max_norm: float, *, world_size: int = 1) -> Tensor:
    """Scale the gradient in place so that its norm is at most max_norm / sqrt(W), and return the norm it had.

    Deep Gradient Compression (Lin et al. 2018, https://arxiv.org/abs/1712.01887, section 3.2) clips on each
    of W workers before error feedback: the sum of W independent gradients has sqrt(W) times the norm of one.
    Leave `world_size` at 1 to clip without that scaling, or to clip the mean after the reduction.
    """
    norm: Tensor = torch.linalg.vector_norm(g_N)
    # The norm stays on the device: comparing it here would make the host wait.
    g_N.mul_((max_norm * world_size**-0.5 / (norm + 1e-6)).clamp(max=1.0))
    return norm


class LossScale(nn.Module):
    """The factor that keeps small fp16 gradients from vanishing: as `torch.amp.GradScaler` moves it.

    It is halved after a step that overflowed, and doubled after so many in a row that did not. Its own
    because a step is skipped by all ranks together, which GradScaler cannot be told.

    Args:
        enabled: Else it stays 1.
    """

    INITIAL, INTERVAL = 2.0**16, 2000
    scale: Tensor
    good: Tensor

    def __init__(self, *, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled
        scale = self.INITIAL if enabled else 1.0
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.register_buffer("good", torch.zeros((), dtype=torch.int64))

    def learn(self, *, overflowed: bool) -> None:
        """Hear how the step went."""
        if not self.enabled:
            return
        self.good.copy_(self.good.new_zeros(()) if overflowed else self.good + 1)
        if overflowed:
            self.scale.div_(2)
        elif int(self.good) == self.INTERVAL:
            self.scale.mul_(2)
            self.good.zero_()


class RunningAverage:
    """The uniform mean of the weights, and of the floating-point buffers, over the epoch ends it was shown.

    After n models, mean <- mean + (x - mean) / n. Averaged weights, as in Izmailov et al. 2018
    (https://arxiv.org/abs/1803.05407, algorithm 1), only without a cyclical learning rate.
    """

    def __init__(self) -> None:
        self.num_averaged = 0
        self.means: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model as it is now into the mean."""
        self.num_averaged += 1
        for name, x in floating(model):
            # A mean read from a checkpoint is on the CPU until here.
            mean = self.means.get(name, torch.zeros_like(x)).to(x.device)
            self.means[name] = mean.add_(x - mean, alpha=1 / self.num_averaged)

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Put the mean into the model for as long as the context lasts, then what was there before."""
        assert self.num_averaged, "no model was averaged yet"
        before = {name: x.detach().clone() for name, x in floating(model)}
        try:
            _copy(self.means, model)
            yield
        finally:
            _copy(before, model)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"num_averaged": self.num_averaged, "means": dict(self.means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.num_averaged = state["num_averaged"]
        self.means = {name: mean.clone() for name, mean in state["means"].items()}


def floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and floating-point buffers by name, of which an average is kept."""
    yield from model.named_parameters()
    yield from ((name, b) for name, b in model.named_buffers() if b.is_floating_point())


@torch.no_grad()
def _copy(source: dict[str, Tensor], model: nn.Module) -> None:
    for name, x in floating(model):
        x.copy_(source[name])
