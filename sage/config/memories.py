"""The kinds of error feedback, and settings that some of them exclude."""

from collections.abc import Mapping
from typing import Any, Literal

Memory = Literal["none", "residual", "momentum", "union", "loco", "ef21", "ef21-sgdm", "econtrol", "diana"]

ESTIMATING = ("ef21", "ef21-sgdm", "econtrol", "diana")
"""Memories that send the difference of a gradient from an estimate, and have no residual."""

WITH_MOMENTUM = ("momentum", "ef21-sgdm")
"""Memories that contain the momentum of the optimiser."""


def check_memory(config: Mapping[str, Any]) -> None:
    """Refuse options of a residual for a memory that has none.

    Args:
        config: The fields of a configuration by name, each valid by itself.

    Raises:
        ValueError: Such an option is given.
    """
    if config["memory"] not in ESTIMATING:
        return
    neutral = {"memory_beta": 1, "memory_gamma": 1, "memory_lr_ratio": False}
    for name, value in neutral.items():
        if config[name] != value:
            raise ValueError(
                f"memory is {config['memory']!r}, which has no residual, and {name} is {config[name]!r}, "
                f"which is for one: set {name} to {str(value).lower()}, or use --memory residual"
            )
