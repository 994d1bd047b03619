"""One unit of `--mount fsdp`: the shards of a module's parameters that are reduced together."""
# N = elements of the unit's shards, with FSDP2's padding

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

from sage.config import Config
from sage.mount.origins import of_shard
from sage.reduction.layout import Origin
from sage.reduction.reducer import Reducer
from sage.train.bucket import Bucket


class FsdpBucket(Bucket):
    """The gradient of a unit's shards, from FSDP2's vector to the mean and into each local part's `.grad`.

    If the reducer takes the parameters in the order of FSDP2's vector, the vector is the flat gradient, and
    nothing is copied.

    Args:
        config: Options of error feedback, momentum, decay and clipping are read from it.
        named: FSDP2's parameters that require a gradient by name, in the order of its vector.
        local: This rank's part of each parameter, by name.
        reducer: Copied; not yet bound.
        origins: Where each parameter is in the vector of the whole model, by name.
        index: Index of this rank's shard.
    """

    def __init__(
        self,
        config: Config,
        named: Mapping[str, FSDPParam],
        local: Mapping[str, nn.Parameter],
        reducer: Reducer,
        origins: Mapping[str, Origin],
        index: int,
    ) -> None:
        # With the padding, which is zero, as the gradient has it too.
        padded = {name: p._sharded_param_data.view(p.padded_sharded_param_size) for name, p in named.items()}
        super().__init__(
            config,
            padded,
            reducer,
            shapes={name: x.shape for name, x in padded.items()},
            dtype=next(iter(padded.values())).dtype,
            always=set(),
            origins={name: of_shard(origins[name], x.shape, index) for name, x in padded.items()},
        )
        self._local = {name: local[name] for name in self.names}
        self._is_in_place = self.names == list(named)
        views = {} if self._is_in_place else self.flat.views()
        self._views = [views[name].view(-1) for name in named if views]

    def load(self, shards_N: Tensor) -> None:
        """Set the flat gradient to FSDP2's, of this unit."""
        if self._is_in_place:
            self.flat.use(shards_N)
        else:
            torch._foreach_copy_(self._views, shards_N.split([view.numel() for view in self._views]))

    def set_gradients(self) -> None:
        """Make each local part's `.grad` a view of the mean, without the padding."""
        for p, view in zip(self._local.values(), self.flat.views().values(), strict=True):
            p.grad = view[: len(p)].view_as(p)
