"""The learning rate of a step: warm-up, schedule and floor, and setting it in an optimiser."""

import math
from collections.abc import Sequence

import torch


def peak_scale(lr_scale: float, world_size: int) -> float:
    """Return the factor by which the learning rate is scaled at its peak: max(1, lr_scale W).

    This is the linear scaling rule of Goyal et al. 2017 (https://arxiv.org/abs/1706.02677, section 2.1).
    `lr_scale` is the batch size of one worker divided by the batch size that `lr` was tuned for: 256/128 for
    the CNNs. An `lr_scale` of 0 disables scaling.
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
    min_lr: float = 0.0,
    warmdown: float = 0.2,
) -> float:
    """Return the learning rate of one step: warm-up from `start_scale` to `peak_scale`, then a schedule.

    With peak = lr peak_scale and floor = min_lr peak_scale, the schedules are:

    - `constant`: peak
    - `step`: peak, multiplied by `factor` at each of the `milestones`, which are in epochs
    - `cosine`: floor + (peak - floor) (1 + cos(pi t)) / 2, where t rises from 0 at the end of the warm-up to
      1 at `total_steps` (Loshchilov, Hutter 2017, https://arxiv.org/abs/1608.03983, equation 5)
    - `linear`: floor + (peak - floor) (1 - t), with the same t
    - `warmdown`: peak, then `linear` to the floor over the last `warmdown` of all steps, a fraction
      (Hägele et al. 2024, https://arxiv.org/abs/2405.18392, equation 1)
    - `decay`: peak (1 / (1 + lr_decay))^max(epoch - decay_from, 0), updated once per epoch

    The result depends only on the arguments, so a resumed run needs no state for it.

    >>> schedule(25, lr=0.1, peak_scale=2, warmup_steps=10, kind="step", steps_per_epoch=10, total_steps=30,
    ...          milestones=(2,), factor=0.5)
    0.1
    """
    if step < warmup_steps:
        return lr * (start_scale + (peak_scale - start_scale) * step / warmup_steps)
    peak, floor = lr * peak_scale, min_lr * peak_scale
    match kind:
        case "constant":
            return peak
        case "step":
            return peak * factor ** sum(step >= milestone * steps_per_epoch for milestone in milestones)
        case "cosine":
            progress = _progress(step, warmup_steps, total_steps)
            return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            return floor + (peak - floor) * (1 - _progress(step, warmup_steps, total_steps))
        case "warmdown":
            start = max(warmup_steps, total_steps * (1 - warmdown))
            return floor + (peak - floor) * (1 - _progress(step, start, total_steps))
        case "decay":
            return peak / math.pow(1 + lr_decay, max(step // steps_per_epoch - decay_from, 0))
    raise ValueError(
        f"no learning-rate schedule is called {kind!r}: choose constant, step, cosine, linear, warmdown or "
        "decay"
    )


def _progress(step: int, start: float, total_steps: int) -> float:
    """Rises from 0 until `start` to 1 at `total_steps`."""
    return min(max((step - start) / max(total_steps - start, 1), 0.0), 1.0)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups: `lr`, times the `lr_ratio` of groups that have one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)
