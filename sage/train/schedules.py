"""Derives the optimiser, the learning rate and the number of steps from a configuration."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sage.comm.wire import Wire
from sage.config import Config
from sage.data.dataset import Dataset
from sage.reduction.error_feedback import MemoryOptions
from sage.train.learning_rate import peak_scale, schedule
from sage.train.optim import BeforeReduction
from sage.train.optimizers import build_optimizer


def before_reduction(config: Config, parameters: Sequence[Tensor]) -> BeforeReduction:
    """Return the module that applies weight decay and momentum before the reduction."""
    momentum = config.momentum_at == "before" and config.momentum_kind != "none"
    return BeforeReduction(
        parameters,
        momentum=config.momentum if momentum else 0.0,
        nesterov=config.momentum_kind == "nesterov",
        weight_decay=config.weight_decay if config.weight_decay_at == "before" else 0.0,
        decay_norms=config.decay_norms,
    )


def memory_options(config: Config) -> MemoryOptions:
    """Return the options of `ErrorFeedback` apart from the kind of memory."""
    return {
        "beta": config.memory_beta,
        "gamma": config.memory_gamma,
        "lr_ratio": config.memory_lr_ratio,
        "momentum": config.memory_momentum,
        "masking": config.memory_masking,
        "nesterov": config.memory_nesterov,
        "a": config.memory_a,
        "eta": config.memory_eta,
        "loco_beta": config.memory_loco_beta,
        "reset_every": config.memory_reset_every,
    }


def optimizer(
    config: Config,
    model: nn.Module,
    trained: Sequence[Tensor] | None = None,
    wire: Wire | None = None,
) -> torch.optim.Optimizer:
    """Build the optimiser that applies the mean gradient.

    Args:
        config: The configuration of the run.
        model: The model.
        trained: The tensors to update, in the order of the model's parameters; None: the parameters.
        wire: For optimisers that communicate.

    Raises:
        ValueError: Muon is not available, or the model has no matrix for it.
    """
    momentum = config.momentum_at == "after" and config.momentum_kind != "none" and config.momentum > 0
    return build_optimizer(
        model,
        kind=config.optimizer,
        lr=config.lr,
        trained=trained,
        momentum=config.momentum if momentum else 0.0,
        nesterov=momentum and config.momentum_kind == "nesterov",
        weight_decay=config.weight_decay if config.weight_decay_at == "after" else 0.0,
        decay_norms=config.decay_norms,
        decay_embeddings=config.decay_embeddings,
        betas=(config.beta1, config.beta2),
        eps=config.adam_eps,
        adamw_lr=config.adamw_lr,
        adamw_names=config.adamw_names,
        ns_steps=config.ns_steps,
        adjust_lr_fn=config.adjust_lr_fn,
        wire=wire,
        exchange=exchange_options(config),
    )


def exchange_options(config: Config) -> dict[str, Any]:
    """Return the options of an optimiser that communicates, besides those of Adam; none for the others."""
    grouping = config.grouping or "model"
    match config.optimizer:
        case "onebit-adam":
            return {
                "freeze_step": config.freeze_step,
                "bias_correction": config.bias_correction,
                "grouping": grouping,
            }
        case "onebit-lamb":
            return {"freeze_step": config.freeze_step}
        case "zeroone-adam":
            names = ("freeze_step", "var_update_scaler", "local_step_scaler", "local_step_clipper")
            return {**{name: getattr(config, name) for name in names}, "grouping": grouping}
        case "demo":
            of_demo = ("decay", "k", "edge", "average", "values")
            return {name: getattr(config, f"demo_{name}") for name in of_demo}
        case "dion":
            return {"rank_fraction": config.rank_fraction, "seed": config.seed}
    return {}


def learning_rate(config: Config, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
    """Return the learning rate of one step.

    The warm-up rises from the rate for one worker to the rate for all workers: from lr to the scaled lr, or
    from lr/W to lr if `lr` is already meant for all workers (lr_scale 0); Goyal et al. 2017, section 2.2.
    `warmup_from` replaces this first rate by a multiple of lr.
    """
    start_scale = 1.0 if config.lr_scale else 1 / config.world_size
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    return schedule(
        step,
        lr=config.lr,
        peak_scale=peak_scale(config.lr_scale, config.world_size),
        start_scale=start_scale if config.warmup_from is None else config.warmup_from,
        warmup_steps=warmup_steps if config.warmup_steps is None else config.warmup_steps,
        kind=config.schedule,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        milestones=config.milestones,
        factor=config.lr_factor,
        lr_decay=config.lr_decay,
        decay_from=config.decay_from,
        min_lr=config.min_lr,
        warmdown=config.warmdown,
    )


def count_steps(config: Config, data: Dataset) -> tuple[int, int]:
    """Return the number of optimiser steps per epoch and in the run.

    Raises:
        ValueError: An epoch is too short for one step.
    """
    batches = data.num_steps(batch_size=config.batch_size, world_size=config.world_size)
    if batches < config.accumulate:
        raise ValueError(
            f"an epoch has {batches} batches on each of {config.world_size} ranks, but one step "
            f"accumulates {config.accumulate}: lower --accumulate or --batch-size"
        )
    per_epoch = batches // config.accumulate
    total = max(1, round(config.epochs * per_epoch))
    return per_epoch, total if config.steps is None else min(total, config.steps)
