"""Chooses the mount of a run: how a step is taken under each `--mount`.

    | --mount | when a gradient is reduced                              | class                              |
    |---------|---------------------------------------------------------|------------------------------------|
    | whole   | after backward, the whole gradient at once              | sage.train.mounted_whole           |
    | ddp     | during backward, each bucket of DistributedDataParallel | sage.train.mounted_ddp             |
    | fsdp    | during backward, each unit of FSDP2, between replicas   | sage.train.mounted_fsdp            |

With an optimiser that communicates (`sage.optim`), `whole` reduces nothing: sage.train.mounted_unreduced.
With `--local-steps`, the mount is sage.train.mounted_local: each rank takes steps with its own gradient, and
what is reduced is the change of its weights; with `--fragments`, it is sage.train.mounted_streaming.

All have the interface `sage.train.mounted.Mounted`. `sage.train.step` calls it: `compute` runs the passes of
a step and leaves the mean gradient in each parameter's `.grad`; clipping of the mean and the optimiser's
update follow, the same for every mount.
"""

from sage.comm.process import ProcessWire
from sage.config import EXCHANGING, is_streaming
from sage.train.mount_limits import check_hierarchy, check_measured
from sage.train.mounted import Mounted as Mounted
from sage.train.mounted import Parts
from sage.train.mounted_local import MountedLocal
from sage.train.mounted_streaming import MountedStreaming
from sage.train.mounted_unreduced import MountedUnreduced
from sage.train.mounted_whole import MountedWhole


def attach(parts: Parts) -> Mounted:
    """Attach the mount that the configuration names to the model.

    Raises:
        ValueError: The mount does not support the configuration, or the ranks are not processes.
    """
    check_hierarchy(parts.config)
    check_measured(parts.config)
    if parts.config.local_steps is not None:
        return MountedStreaming(parts) if is_streaming(vars(parts.config)) else MountedLocal(parts)
    if parts.config.mount == "whole":
        return MountedUnreduced(parts) if parts.config.optimizer in EXCHANGING else MountedWhole(parts)
    if not isinstance(parts.wire, ProcessWire):
        raise ValueError(
            f"mount is {parts.config.mount!r}, but the ranks are threads of one process: use --mount whole"
        )
    if parts.config.mount == "fsdp":
        from sage.mount.fsdp2 import check_fsdp2  # here, because FSDP2's imports take a second

        check_fsdp2("--mount fsdp", "use --mount ddp or whole")
        from sage.train.mounted_fsdp import MountedFsdp

        return MountedFsdp(parts, parts.wire)
    from sage.train.mounted_ddp import MountedDdp  # here, because DDP's imports take a second

    return MountedDdp(parts, parts.wire)


def preload(mount: str) -> None:
    """Import what a mount needs, once before the ranks are forked."""
    if mount == "ddp":
        import torch._dynamo  # noqa: F401 - DDP imports it

    if mount == "fsdp":
        pass
