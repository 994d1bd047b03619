"""Operations on the gradient before the optimiser, the loss scale, and the running average of the model.

Weight decay, momentum and clipping can each be applied before or after the reduction. The order affects the
residual of error feedback. The default is after, as in PowerSGD (Vogels, Karimireddy, Jaggi 2019,
https://arxiv.org/abs/1905.13727, algorithm 2). Before is dist-EF-SGDM (Zheng, Huang, Kwok 2019,
https://arxiv.org/abs/1905.10936), which BytePS follows.
"""

# N = elements of the flat gradient, all parameters end to end

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sage.train.parameter_rules import decays


class BeforeReduction(nn.Module):
    """Applies weight decay and momentum to the local gradient before the reduction.

    With weights x, decay w and momentum mu (BytePS; heavy ball without `nesterov`):

        g <- g + w x
        m <- mu m + g
        p  = g + mu m    (nesterov)      p = m    (heavy ball)

    and p is reduced. The momentum and weight decay of the optimiser must then be 0. A gradient that is not
    finite would make m permanently non-finite, so such a step must be skipped before this is called.

    Args:
        parameters: The parameters, in the order of the flat gradient.
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
            (start, p) for start, p in zip(starts, parameters, strict=True) if decays(p, decay_norms)
        ]
        m_N = parameters[0].new_zeros(sum(sizes), requires_grad=False) if momentum else None
        self.register_buffer("m_N", m_N)

    @torch.no_grad()
    def forward(self, g_N: Tensor) -> Tensor:
        """Apply weight decay and momentum to the flat gradient in place, and return it."""
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


def joint_norm(vectors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of the vectors' elements taken together.

    >>> float(joint_norm([torch.tensor([3.0]), torch.tensor([4.0])]))
    5.0
    """
    norms = [torch.linalg.vector_norm(x) for x in vectors]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def clip_(
    gradient: Sequence[Tensor], max_norm: float, *, world_size: int = 1, norm: Tensor | None = None
) -> Tensor:
    """Clip the norm of the gradient to max_norm / sqrt(W) in place, and return the norm before clipping.

    Deep Gradient Compression (Lin et al. 2018, https://arxiv.org/abs/1712.01887, section 3.2) clips on each
    of W workers before error feedback: the sum of W independent gradients has sqrt(W) times the norm of one.
    Leave `world_size` at 1 to clip without this scaling, or to clip the mean after the reduction.

    Args:
        gradient: The flat vectors that make up the gradient.
        max_norm: The largest norm for one rank.
        world_size: W.
        norm: The norm of the gradient; None: of the given vectors.
    """
    norm = joint_norm(gradient) if norm is None else norm
    # The norm stays on the device: a comparison on the host would synchronise.
    factor = (max_norm * world_size**-0.5 / (norm + 1e-6)).clamp(max=1.0)
    for part_N in gradient:
        part_N.mul_(factor)
    return norm


class LossScale(nn.Module):
    """The dynamic loss scale of fp16 training, updated as in `torch.amp.GradScaler`.

    It prevents small fp16 gradients from underflowing. It is halved after a step with an overflow, and
    doubled after `INTERVAL` consecutive steps without one. GradScaler itself cannot be used, because all
    ranks must skip a step together.

    Args:
        enabled: If False, the scale stays 1.
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
        """Update the scale after a step."""
        if not self.enabled:
            return
        self.good.copy_(self.good.new_zeros(()) if overflowed else self.good + 1)
        if overflowed:
            self.scale.div_(2)
        elif int(self.good) == self.INTERVAL:
            self.scale.mul_(2)
            self.good.zero_()


class RunningAverage:
    """The uniform mean of the weights and floating-point buffers over the models passed to `update`.

    After n models, mean <- mean + (x - mean) / n. This is weight averaging as in Izmailov et al. 2018
    (https://arxiv.org/abs/1803.05407, algorithm 1), without a cyclical learning rate.
    """

    def __init__(self) -> None:
        self.num_averaged = 0
        self.means: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the current weights of the model to the mean."""
        self.num_averaged += 1
        for name, x in floating(model):
            # A mean loaded from a checkpoint is still on the CPU.
            mean = self.means.get(name, torch.zeros_like(x)).to(x.device)
            self.means[name] = mean.add_(x - mean, alpha=1 / self.num_averaged)

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Load the mean into the model within the context, and restore the previous weights after it."""
        assert self.num_averaged, "no model has been averaged yet"
        before = {name: x.detach().clone() for name, x in floating(model)}
        try:
            _copy(self.means, model)
            yield
        finally:
            _copy(before, model)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"num_averaged": self.num_averaged, "means": dict(self.means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.num_averaged = state["num_averaged"]
        self.means = {name: mean.clone() for name, mean in state["means"].items()}


def floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of the parameters and floating-point buffers, which are averaged."""
    yield from model.named_parameters()
    yield from ((name, b) for name, b in model.named_buffers() if b.is_floating_point())


@torch.no_grad()
def _copy(source: dict[str, Tensor], model: nn.Module) -> None:
    for name, x in floating(model):
        x.copy_(source[name])
