"""FSDP2's custom collectives that send shards in the formats of `sage.reduction`.

FSDP2 calls them on its own streams, with memory that `allocate` gives; what they compute is on the current
stream, as are the collectives of a wire.
"""

import torch.distributed as dist
from torch import Tensor

from sage.mount.fsdp2 import DefaultAllGather, DefaultReduceScatter
from sage.mount.loss_scale import current, factor_of
from sage.reduction.shard_exchange import ReduceScatter
from sage.reduction.shard_gather import AllGather


class ShardGather(DefaultAllGather):
    """FSDP2's all-gather of parameters, through a wire."""

    def __init__(self, gather: AllGather) -> None:
        self.exchange = gather

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        output_tensor.copy_(self.exchange(input_tensor).view(-1))
        return None


class ShardScatter(DefaultReduceScatter):
    """FSDP2's reduce-scatter of gradients, through a wire, with FSDP2's division."""

    def __init__(self, scatter: ReduceScatter) -> None:
        self.exchange = scatter

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp | dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> dist.Work | None:
        num = group.size()
        if op not in (dist.ReduceOp.AVG, dist.ReduceOp.SUM):
            raise ValueError(
                f"FSDP2 asks for a reduce-scatter by {op}, and only sums and means are supported: call "
                "set_force_sum_reduction_for_comms(True) on the modules whose divide factor was set"
            )
        scale = current()
        if scale is not None and self.exchange.errors:
            self.exchange.set_loss_scale(factor_of(scale))
        divisor = num if op == dist.ReduceOp.AVG else 1
        output_tensor.copy_(self.exchange(input_tensor.view(num, -1), divisor))
        return None
