"""The parts of FSDP2 that SAGE uses, and the refusal of a torch whose FSDP2 lacks them.

torch 2.8, which runs everything else, has `fully_shard` without them.
"""

from typing import TYPE_CHECKING

import torch
from torch.distributed.fsdp import FSDPModule

if TYPE_CHECKING:
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather as DefaultAllGather
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
        DefaultReduceScatter as DefaultReduceScatter,
    )
else:
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
            DefaultAllGather,
            DefaultReduceScatter,
        )
    except ImportError:  # what derives from them can be imported, and `check_fsdp2` refuses its use
        DefaultAllGather = DefaultReduceScatter = object

_METHODS = ("set_custom_all_gather", "set_custom_reduce_scatter", "set_reduce_scatter_unused_params")
_OLDEST = "2.13"
"""The oldest torch whose FSDP2 was tested; the parameter groups that are read have no public name."""


def check_fsdp2(what: str, instead: str) -> None:
    """Refuse a version of torch whose FSDP2 lacks a method that SAGE calls.

    Args:
        what: The function or option that needs it.
        instead: The end of the message: what works without it.

    Raises:
        ValueError: It lacks one.
    """
    for method in _METHODS:
        if not hasattr(FSDPModule, method):
            raise ValueError(
                f"torch {torch.__version__} has no FSDPModule.{method}: {what} needs torch {_OLDEST} or "
                f"later; {instead}"
            )
