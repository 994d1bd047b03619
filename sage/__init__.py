"""SAGE: a SLURM-native benchmark suite for gradient compression in distributed PyTorch training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sage.version import __version__ as __version__

_MOUNTS = {
    "comm_hook": "comm_hook",
    "ddp_hook": "ddp",
    "fsdp_hook": "fsdp",
    "ledger": "foreign_hook",
    "reduce_model": "whole",
}
"""The module of `sage.mount` that defines each name; imported on first access, as torch takes seconds."""

if TYPE_CHECKING:
    from sage.mount.comm_hook import comm_hook as comm_hook
    from sage.mount.ddp import ddp_hook as ddp_hook
    from sage.mount.foreign_hook import ledger as ledger
    from sage.mount.fsdp import fsdp_hook as fsdp_hook
    from sage.mount.whole import reduce_model as reduce_model
else:

    def __getattr__(name: str) -> Any:
        if name not in _MOUNTS:
            raise AttributeError(f"module 'sage' has no attribute {name!r}")
        return getattr(import_module(f"sage.mount.{_MOUNTS[name]}"), name)
