"""Checks the parameters that an optimiser is given."""

from collections.abc import Mapping

import torch
from torch import nn

from sage.mount.shards import is_sharded


def check_parameters(named: Mapping[str, nn.Parameter]) -> torch.device:
    """Return the device of the parameters.

    Raises:
        ValueError: if one is sharded, not a dense float32 tensor, on another device than the others, or has
            elements that share memory; the message gives its name.
    """
    devices = {p.device: name for name, p in named.items()}
    if len(devices) > 1:
        where = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise ValueError(f"the parameters are on several devices ({where}); expected one: move the model")
    for name, p in named.items():
        if is_sharded(p):
            raise ValueError(
                f"{name!r} is a DTensor, sharded over a device mesh: expected a plain parameter of a model "
                "without fully_shard"
            )
        if p.dtype != torch.float32:
            raise ValueError(
                f"{name!r} is {p.dtype}; expected torch.float32: keep the parameters in float32, and use "
                "torch.autocast for a lower precision"
            )
        if p.layout != torch.strided or p.device.type == "meta":
            raise ValueError(f"{name!r} is {p.layout} on {p.device}: expected a dense tensor with values")
        if torch._debug_has_internal_overlap(p) == 1:
            raise ValueError(
                f"the elements of {name!r} share memory, as after expand(): replace it by its .clone()"
            )
    return next(iter(devices))
