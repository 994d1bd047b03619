"""A `(state, hook)` pair for frameworks that wrap the model in DistributedDataParallel themselves.

The reducer is mounted when the first gradients arrive, because the wrapper exists by then.
"""

import gc
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from sage.mount.base import Method, maker
from sage.mount.ddp import DdpMount, mount_on
from sage.mount.loss_scale import watch
from sage.mount.signature import not_a_hook
from sage.mount.wrapped import checked
from sage.reduction.error_feedback import MemoryOptions
from sage.reduction.reducer import Memory


class CommState:
    """State of `sage.comm_hook`'s pair; `mount` is the mount after the first backward has begun."""

    def __init__(
        self,
        model: nn.Module | None,
        reducer: Method,
        options: Mapping[str, Any],
        **mount_options: Any,
    ) -> None:
        self._make = maker(reducer, options)  # called here, so that wrong options are refused at once
        self._requested = reducer, options
        self._options = mount_options
        self._model = model
        self._mount: DdpMount | None = None

    @property
    def mount(self) -> DdpMount:
        """The mount, with its traffic, state and so on.

        Raises:
            ValueError: before the first backward, when there is none.
        """
        if self._mount is None:
            raise ValueError(
                "the reducer is not mounted before the first backward of the wrapped model: read state.mount "
                "after it"
            )
        return self._mount

    def reduce(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """Mount the reducer if it is not mounted yet, and reduce a bucket."""
        if self._mount is None:
            self._mount = self._bind()
        return self._mount._hook(self, bucket)

    def _bind(self) -> DdpMount:
        # A hook does not receive its model. DDP stores its hooks in a list, by which the wrapper is found.
        wrappers = [
            candidate
            for candidate in gc.get_objects()
            if issubclass(type(candidate), DistributedDataParallel)
            and any(state is self for _, state in candidate.__dict__.get("_comm_hooks", ()))
        ]
        if len(wrappers) != 1:
            raise ValueError(
                f"the pair of sage.comm_hook is registered with {len(wrappers)} models: create one for each, "
                "and register it by model.register_comm_hook(state, hook)"
            )
        (wrapper,) = wrappers
        if self._model is not None and self._model not in (wrapper, wrapper.module):
            raise ValueError(
                f"sage.comm_hook was created for a {type(self._model).__name__} but registered with a "
                f"wrapper of another module, a {type(wrapper.module).__name__}: pass it the wrapped module, "
                "or None"
            )
        return mount_on(
            checked(wrapper, in_backward=True), self._make, requested=self._requested, **self._options
        )


@not_a_hook
def comm_hook(
    model: nn.Module | None,
    reducer: Method,
    *,
    memory: Memory | None = None,
    memory_options: MemoryOptions | None = None,
    grouping: str | None = None,
    min_compress: int = 0,
    timeout: float = 300.0,
    guard: bool = False,
    **options: Any,
) -> tuple[CommState, Any]:
    """A pair for DistributedDataParallel's `register_comm_hook(state, hook)`, available before wrapping.

        state, hook = sage.comm_hook(None, "topk", density=0.01)
        DDPStrategy(ddp_comm_state=state, ddp_comm_hook=hook)       # Lightning registers it

    It is equivalent to `sage.ddp_hook`, and the other arguments are the same. The mount is `state.mount` from
    the first backward on. One pair serves one model.

    Args:
        model: The model, wrapped or to be wrapped; None if it does not exist yet.
        reducer: A reducer's name, with its options as further keywords; or a reducer, or a callable that
            creates one.

    Raises:
        ValueError: if the reducer or an option does not fit; if the model does not, from the first backward.
    """
    if isinstance(model, DistributedDataParallel):
        checked(model)
    watch()  # the loss of the first backward is scaled before the reducer is mounted
    state = CommState(
        model,
        reducer,
        options,
        memory=memory,
        memory_options=memory_options,
        grouping=grouping,
        min_compress=min_compress,
        timeout=timeout,
        guard=guard,
    )
    return state, reduce_bucket


def reduce_bucket(state: CommState, bucket: dist.GradBucket) -> Future[Tensor]:
    """The hook of `sage.comm_hook`'s pair.

    Raises:
        ValueError: if it was registered without its state.
    """
    if not isinstance(state, CommState):
        raise ValueError(
            f"the hook of sage.comm_hook was registered with the state {state!r}: register both, as in "
            "model.register_comm_hook(*sage.comm_hook(model, 'topk'))"
        )
    return state.reduce(bucket)
