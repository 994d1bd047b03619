"""The parts of FSDP2 that SAGE uses, and the refusal of a torch whose FSDP2 lacks them.

torch 2.8 has `fully_shard` without custom collectives. torch 2.13 has them, but ranks that have created
different numbers of groups name the next group of a part of them differently, and wait for each other.
"""

import re
from typing import TYPE_CHECKING

import torch

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

_OLDEST = 2, 14


def check_fsdp2(what: str, instead: str) -> None:
    """Refuse a version of torch whose FSDP2 or whose groups of ranks do not do what SAGE needs.

    Args:
        what: The function or option that needs it.
        instead: The end of the message: what works without it.

    Raises:
        ValueError: It is too old.
    """
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ValueError(f"{what} needs torch {oldest} or later, and this is {torch.__version__}; {instead}")
