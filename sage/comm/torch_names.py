"""Functions of torch.distributed whose names differ between versions of torch.

| here | torch 2.14 | before |
|---|---|---|
| `all_gather` | `all_gather_single` | `all_gather_into_tensor` |
| `reduce_scatter` | `reduce_scatter_single` | `reduce_scatter_tensor` |
| `store_of` | `ProcessGroup.get_group_store()` | `distributed_c10d._world.pg_map` |
"""
# W = world size, S = elements of a buffer, N = elements of a vector

import torch.distributed as dist
from torch import Tensor


def all_gather(out_WS: Tensor, x_S: Tensor, group: dist.ProcessGroup | None) -> None:
    """Write the x_S of every rank, in rank order, to the flat out_WS of W·S elements."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(out_WS, x_S, group=group)


def reduce_scatter(out_N: Tensor, x_WN: Tensor, group: dist.ProcessGroup | None) -> None:
    """Write the sum over ranks of this rank's part of the flat x_WN, of W·N elements, to the flat out_N."""
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    scatter(out_N, x_WN, group=group)


def store_of(group: dist.ProcessGroup) -> dist.Store:
    """Return the store of a process group."""
    if hasattr(group, "get_group_store"):
        store: dist.Store = group.get_group_store()
        return store
    from torch.distributed import distributed_c10d

    group_store: dist.Store = distributed_c10d._world.pg_map[group][1]
    return group_store
