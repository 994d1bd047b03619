"""Checks the settings of local updates, and fills in those that depend on others."""

from collections.abc import Mapping
from typing import Any

from .local_presets import KEYS
from .memories import WITH_MOMENTUM
from .optimization import EXCHANGING


def outer_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the outer optimiser that are not given: γ = 1 and β = 0.

    They depend on whether there is an outer optimiser, so they are no defaults of the fields.
    """
    if config["outer_optimizer"] is None:
        return {}
    values = {"outer_lr": 1.0, "outer_momentum": 0.0}
    return {name: value for name, value in values.items() if config[name] is None}


def check_local(config: Mapping[str, Any]) -> None:
    """Refuse contradictory settings of local updates.

    Args:
        config: The fields of a configuration by name, each valid by itself.

    Raises:
        ValueError: A setting needs another one, or the mount or the memory does not support local updates.
    """
    steps, quorum = config["local_steps"], config["quorum"]
    if quorum is not None and (steps is None or quorum > config["world_size"]):
        raise ValueError(
            f"quorum is {quorum}, with world_size {config['world_size']} and local_steps {steps}; it needs "
            "local updates, and allowed are at most as many as there are ranks"
        )
    if quorum is not None and config["hierarchy"] == "node":
        raise ValueError(
            f"quorum is {quorum}, but hierarchy 'node' needs as many ranks on each node, also after a loss: "
            "use --hierarchy flat, or leave --quorum out"
        )
    if steps is None:
        for name, default in KEYS.items():
            if config[name] != default:
                raise ValueError(
                    f"{name} is {config[name]!r}, but without local_steps every step communicates: set "
                    f"--local-steps, as in --local-steps 30, or leave --{name.replace('_', '-')} out"
                )
        return
    if config["mount"] != "whole":
        raise ValueError(
            f"mount is {config['mount']!r}, which reduces gradients in every backward, but local_steps is "
            f"{steps}: use --mount whole, or leave --local-steps out"
        )
    if config["optimizer"] in EXCHANGING:
        raise ValueError(
            f"optimizer is {config['optimizer']!r}, which communicates in every step, but local_steps is "
            f"{steps}: use another optimiser, or leave --local-steps out"
        )
    if config["outer_optimizer"] is None:
        for name in ("outer_lr", "outer_momentum", "outer_by_lr"):
            if config[name] != KEYS[name]:
                raise ValueError(
                    f"{name} is {config[name]!r}, but there is no outer optimiser: add --outer-optimizer sgd "
                    f"or nesterov, or leave --{name.replace('_', '-')} out"
                )
    for name in ("first_moment_steps", "second_moment_steps"):
        if config[name] is not None and config["optimizer"] not in ("adam", "adamw"):
            raise ValueError(
                f"{name} is {config[name]}, but optimizer is {config['optimizer']!r}, which does not have "
                f"this moment of all parameters: use adam or adamw, or leave --{name.replace('_', '-')} out"
            )
    _check_fragments(config)
    if config["memory"] in WITH_MOMENTUM and config["outer_momentum"]:
        raise ValueError(
            f"memory is {config['memory']!r}, and outer_momentum is {config['outer_momentum']:g}, so the "
            "momentum of pseudo-gradients would be applied twice: set --outer-momentum 0, or another memory"
        )


def is_streaming(config: Mapping[str, Any]) -> bool:
    """Whether parts of the model are exchanged at different steps, or the result is taken over in part."""
    return any(config[name] != KEYS[name] for name in ("fragments", *TAKEN_OVER))


TAKEN_OVER = ("fragment_sync_delay", "fragment_update_alpha")
"""How a rank takes over the result of an exchange."""


def _check_fragments(config: Mapping[str, Any]) -> None:
    steps, delay = config["local_steps"], config["fragment_sync_delay"]
    if config["fragments"] > steps:
        raise ValueError(
            f"fragments is {config['fragments']}, but there are {steps} steps in which to exchange one each: "
            f"set --fragments to at most {steps}, or raise --local-steps"
        )
    if delay >= steps:
        raise ValueError(
            f"fragment_sync_delay is {delay}, but a fragment is exchanged again after {steps} steps: set "
            f"--fragment-sync-delay to at most {steps - 1}, or raise --local-steps"
        )
    if config["hierarchy"] == "node" and is_streaming(config):
        raise ValueError(
            "hierarchy is 'node', but fragments are exchanged directly between all ranks: leave --hierarchy "
            "out, or leave out --fragments, --fragment-sync-delay and --fragment-update-alpha"
        )
    if config["outer_by_lr"] and is_streaming(config):
        raise ValueError(
            "outer_by_lr is true, which is SlowMo's and has no fragments: leave it out, or leave out "
            "--fragments, --fragment-sync-delay and --fragment-update-alpha"
        )
