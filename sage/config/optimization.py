"""Refuses settings of optimiser, learning rate and momentum that contradict each other."""

from collections.abc import Mapping
from typing import Any

from .memories import WITH_MOMENTUM

EXCHANGING = ("onebit-adam", "zeroone-adam", "onebit-lamb", "demo", "dion")
"""Optimisers whose ranks exchange what they step with, so that no gradient is reduced (`sage.optim`)."""

FREEZING = ("onebit-adam", "zeroone-adam", "onebit-lamb")
"""Those whose second moment is frozen after `freeze_step` steps."""

UNGROUPED = ("onebit-lamb", "demo", "dion")
"""Those of them that have no scale for a group of elements."""

DECOUPLED = ("adamw", "muon", "signum", *EXCHANGING)
"""Optimisers whose weight decay is subtracted from the parameters and never added to a gradient."""

OWN_MOMENTUM = ("adamw", "muon", *EXCHANGING)
"""Optimisers that keep a first moment of their own for some parameters, whatever `momentum_at` says."""


def check_optimization(config: Mapping[str, Any]) -> None:
    """Refuse contradictory settings.

    Args:
        config: The fields of a configuration by name, each valid by itself.

    Raises:
        ValueError: Two settings contradict each other.
    """
    _check_learning_rate(config)
    _check_momentum(config)
    _check_weight_decay(config)
    _check_exchange(config)
    if config["optimizer"] == "muon" and config["mount"] == "fsdp" and config["shards"] > 1:
        raise ValueError(
            f"optimizer is 'muon', which needs whole matrices, but shards {config['shards']} divides them "
            "between ranks: use --shards 1, --mount whole or ddp, or --optimizer adamw"
        )


def _check_learning_rate(config: Mapping[str, Any]) -> None:
    milestones = config["milestones"]
    if config["schedule"] == "step" and not milestones:
        raise ValueError("schedule is 'step' without milestones; set the epochs, as in --milestones 80 120")
    if config["schedule"] == "decay" and not config["lr_decay"]:
        raise ValueError("schedule is 'decay' with lr_decay 0; set --lr-decay above 0, as in 0.2")
    if list(milestones) != sorted(set(milestones)):
        raise ValueError(f"milestones are {milestones}; allowed are epochs in increasing order")
    if config["min_lr"] > config["lr"]:
        raise ValueError(
            f"min_lr is {config['min_lr']:g}, above lr {config['lr']:g}: set --min-lr to at most --lr"
        )


def _check_momentum(config: Mapping[str, Any]) -> None:
    if not config["momentum"] or config["momentum_kind"] == "none":
        return
    if config["memory"] in WITH_MOMENTUM:
        raise ValueError(
            f"memory is {config['memory']!r}, and momentum is {config['momentum']:g} {config['momentum_at']} "
            "the reduction, so momentum would be applied twice: set --momentum 0, or another memory"
        )
    if config["momentum_at"] == "before" and config["optimizer"] in OWN_MOMENTUM:
        raise ValueError(
            f"momentum_at is 'before' with optimizer {config['optimizer']!r}, which has a momentum of its "
            "own, so momentum would be applied twice: use --momentum-at after, or sgd or signum"
        )


def _check_weight_decay(config: Mapping[str, Any]) -> None:
    if config["weight_decay_at"] == "after" or not config["weight_decay"]:
        return
    if config["optimizer"] in DECOUPLED:
        raise ValueError(
            f"weight_decay_at is 'before', but the weight decay of {config['optimizer']} is decoupled, so it "
            "is never added to a gradient: use --weight-decay-at after, or sgd or adam"
        )
    if not config["decay_embeddings"]:
        raise ValueError(
            "weight_decay_at is 'before' with decay_embeddings false, which is only supported after the "
            "reduction: use --weight-decay-at after, or --decay-embeddings"
        )


def _check_exchange(config: Mapping[str, Any]) -> None:
    optimizer = config["optimizer"]
    if optimizer in FREEZING and config["freeze_step"] is None:
        raise ValueError(
            f"optimizer is {optimizer!r} without freeze_step: set --freeze-step to the number of steps "
            "until the second moment is frozen, at least those of the warm-up"
        )
    if optimizer == "dion" and config["momentum_kind"] == "nesterov":
        raise ValueError(
            "optimizer is 'dion', whose momentum has no variant of Nesterov: use --momentum-kind heavy-ball"
        )
    if optimizer not in EXCHANGING:
        return
    groupings: tuple[str | None, ...] = (None,) if optimizer in UNGROUPED else (None, "model", "layer")
    remedy = "leave --grouping out" if optimizer in UNGROUPED else "use --grouping model or layer"
    wrong = {
        "reducer": (config["reducer"] != "exact", "which is not called: use --reducer exact"),
        "mount": (config["mount"] != "whole", "which reduces gradients: use --mount whole"),
        "hierarchy": (config["hierarchy"] != "flat", "which reduces gradients: use --hierarchy flat"),
        "memory": (config["memory"] not in (None, "none"), "but no gradient is reduced: leave --memory out"),
        "clip_global": (
            config["clip_global"] is not None,
            "but no rank has the mean gradient: use --clip-global none, or --clip-local for each rank's",
        ),
        "grouping": (
            config["grouping"] not in groupings,
            f"which the optimiser does not have: {remedy}",
        ),
    }
    for name, (is_wrong, why) in wrong.items():
        if is_wrong:
            raise ValueError(
                f"optimizer is {optimizer!r}, which exchanges what it steps with itself, and {name} is "
                f"{config[name]!r}, {why}"
            )
