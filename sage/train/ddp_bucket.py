"""One bucket of `--mount ddp`."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sage.comm.levels import Levels
from sage.config import Config
from sage.mount.buckets import gradients_of
from sage.mount.parameters import real_dtype, real_shape
from sage.reduction.layout import Origin
from sage.reduction.reducer import Reducer
from sage.train.bucket import Bucket


class DdpBucket(Bucket):
    """A bucket's gradient, from DDP's buffer to the mean and into each parameter's `.grad`.

    If the reducer takes the parameters in the order of DDP's buffer, the buffer is the flat gradient, and
    nothing is copied. If small tensors are sent dense, they are at the end of the flat gradient, so gradients
    are copied into it; `.grad` then becomes a view of it.

    Args:
        config: Options of error feedback, momentum, decay and clipping are read from it.
        named: The bucket's parameters by name, in the order of DDP's buffer.
        reducer: Copied; not yet bound.
        origins: Where each parameter is in the vector of the whole model, by name.
        levels: The wires of two levels; None: the reduction is between all ranks.
    """

    def __init__(
        self,
        config: Config,
        named: Mapping[str, nn.Parameter],
        reducer: Reducer,
        origins: Mapping[str, Origin],
        levels: Levels | None,
    ) -> None:
        super().__init__(
            config,
            named,
            reducer,
            shapes={name: real_shape(p) for name, p in named.items()},
            dtype=real_dtype(next(iter(named.values()))),
            always={name for name, p in named.items() if p.is_complex()},
            origins=origins,
            levels=levels,
        )
        self._in_order = [named[name] for name in self.names]
        self._is_in_place = self.names == list(named) and all(p.is_contiguous() for p in named.values())
        views = self.flat.views()
        self._views = [] if self._is_in_place else [views[name] for name in named]

    def receive(self, bucket: dist.GradBucket) -> list[Tensor]:
        """Return the tensor for `load` of a bucket that DDP passes to its hook."""
        return [bucket.buffer()] if self._is_in_place else gradients_of(bucket)

    def load(self, received: list[Tensor]) -> None:
        """Set the flat gradient to DDP's."""
        if self._is_in_place:
            if received[0].data_ptr() != self.flat.grad_N.data_ptr():  # DDP keeps its buffers
                self.flat.use(received[0])
        else:
            torch._foreach_copy_(self._views, received)

    def set_gradients(self) -> None:
        """Make each `.grad` a view of the mean; with DDP's buffer as the flat gradient it is one already."""
        if self._views:
            for p, view in zip(self._in_order, self.flat.views().values(), strict=True):
                p.grad = torch.view_as_complex(view) if p.is_complex() else view
