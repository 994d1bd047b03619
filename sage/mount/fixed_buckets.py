"""DistributedDataParallel whose buckets are the same from the first step on.

DDP starts with a single bucket. Before its second forward pass it divides the parameters by the order in
which their gradients arrived in the first backward pass. The content of a bucket determines the order of sums
and the state of a reducer, so it must not depend on whether a process has just started. `FixedBuckets` runs
the first two passes when the model is wrapped, over an empty slice of each parameter, without the model.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

DEFAULT_MB = 25.0
"""DDP's bucket size in MiB. Only with this default has the first bucket a size of its own, 1 MiB."""

MIB = 2**20

_NAMES = inspect.signature(DistributedDataParallel.__init__).parameters
_SYNC = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"
"""DDP's option to send buffers before each forward pass; torch 2.8 has it by the older name."""


class FixedBuckets:
    """A module wrapped in DistributedDataParallel, and the parameters of each of its buckets.

    The buckets are filled from the last parameter to the first, as gradients usually arrive. If all
    parameters fit into one bucket, they are in the order of `parameters`. Parameters and buffers must be
    equal on all ranks; buffers are not synchronised.

    Args:
        module: The module; its `forward` takes at least one argument.
        parameters: The module's parameters that require a gradient, in order.
        bucket_mb: Bucket size in MiB.
        group: Process group of the ranks; None: the default group. DDP broadcasts the order of the parameters
            over it, 4 bytes for each of them, once.
        reduce: DDP's communication hook: receives a bucket during backward, and returns a future of the
            tensor that replaces its buffer.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Sequence[nn.Parameter],
        *,
        bucket_mb: float,
        group: dist.ProcessGroup | None,
        reduce: Callable[[dist.GradBucket], Future[Tensor]],
    ) -> None:
        first = dist._DEFAULT_FIRST_BUCKET_BYTES if bucket_mb == DEFAULT_MB else bucket_mb * MIB
        is_one = sum(p.nbytes for p in parameters) < first
        self._reduce, self._is_fixed = reduce, False
        self._found: dict[int, Sequence[Tensor]] = {}
        no_sync: dict[str, Any] = {_SYNC: False}
        self._wrapped = DistributedDataParallel(
            _WithProbe(module, parameters if is_one else parameters[::-1]),
            process_group=group,
            bucket_cap_mb=None if bucket_mb == DEFAULT_MB else bucket_mb,
            gradient_as_bucket_view=True,
            init_sync=False,
            **no_sync,
        )
        self._wrapped.register_comm_hook(None, self._hook)
        for _ in range(2):
            self._found.clear()
            self._wrapped().backward()
        for p in parameters:
            p.grad = None
        self._is_fixed = True
        known = {id(p): p for p in parameters}
        self.parameters = [[known[id(p)] for p in self._found[index]] for index in range(len(self._found))]
        """Parameters of each bucket, in the order of its buffer; buckets in the order of their reduction."""

    def __call__(self, *arguments: Any) -> Any:
        """Run the module's forward; the next backward reduces the gradients, except within `no_sync`."""
        return self._wrapped(*arguments)

    def no_sync(self) -> AbstractContextManager[None]:
        """Accumulate gradients within the context, and reduce them with the next backward outside it."""
        return self._wrapped.no_sync()

    def _hook(self, state: object, bucket: dist.GradBucket) -> Future[Tensor]:
        if self._is_fixed:
            return self._reduce(bucket)
        self._found[bucket.index()] = bucket.parameters()
        nothing: Future[Tensor] = Future()
        nothing.set_result(bucket.buffer())
        return nothing


class _WithProbe(nn.Module):
    """A module; without arguments, its forward is a sum of no elements.

    Args:
        module: The module.
        order: The order in which the gradients of the sum arrive.
    """

    def __init__(self, module: nn.Module, order: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.module = module
        self._order = list(order)

    def forward(self, *arguments: Any) -> Any:
        if arguments:
            return self.module(*arguments)
        # Backward starts with the newest operation; a parameter's gradient arrives after its operation.
        nothing = [p.reshape(-1)[:0].sum().real.float() for p in reversed(self._order)]
        return torch.stack(nothing).sum()
