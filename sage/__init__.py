"""SAGE: a SLURM-native benchmark suite for gradient compression in distributed PyTorch training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sage.version import __version__ as __version__

_FUNCTIONS = {
    "advise": "bench.advise.script",
    "comm_hook": "mount.comm_hook",
    "ddp_hook": "mount.ddp",
    "fsdp_hook": "mount.fsdp",
    "ledger": "mount.hook_ledger",
    "reduce_model": "mount.whole",
    "shard_comm": "mount.shard_comm",
}
"""The module that defines each name; imported on first access, as torch takes seconds."""
_PACKAGES = ("optim",)
"""Packages that need no import of their own in a script."""

if TYPE_CHECKING:
    from sage import optim as optim
    from sage.bench.advise.script import advise as advise
    from sage.mount.comm_hook import comm_hook as comm_hook
    from sage.mount.ddp import ddp_hook as ddp_hook
    from sage.mount.fsdp import fsdp_hook as fsdp_hook
    from sage.mount.hook_ledger import ledger as ledger
    from sage.mount.shard_comm import shard_comm as shard_comm
    from sage.mount.whole import reduce_model as reduce_model
else:

    def __getattr__(name: str) -> Any:
        if name in _PACKAGES:
            return import_module(f"sage.{name}")
        if name not in _FUNCTIONS:
            raise AttributeError(f"module 'sage' has no attribute {name!r}")
        return getattr(import_module(f"sage.{_FUNCTIONS[name]}"), name)
