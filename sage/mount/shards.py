"""Tells sharded models and parameters without importing what shards them, which takes half a second.

Whatever has not been imported has sharded nothing.
"""

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor


def is_sharded(x: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a tensor is a DTensor."""
    return isinstance(x, _imported("torch.distributed.tensor", "DTensor"))


def is_fsdp2(module: nn.Module) -> "TypeGuard[FSDPModule]":
    """Return whether `fully_shard` shards a module."""
    return isinstance(module, _imported("torch.distributed.fsdp", "FSDPModule"))


def is_fsdp1(module: nn.Module) -> "TypeGuard[FullyShardedDataParallel]":
    """Return whether a module is FullyShardedDataParallel."""
    return isinstance(module, _imported("torch.distributed.fsdp", "FullyShardedDataParallel"))


def _imported(module: str, name: str) -> type | tuple[()]:
    """Return a class if its module has been imported, and otherwise (), of which nothing is an instance."""
    found: type | tuple[()] = getattr(sys.modules.get(module), name, ())
    return found
