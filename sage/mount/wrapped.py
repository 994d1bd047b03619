"""Checks whether a hook can be mounted on a model wrapped in DistributedDataParallel."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sage.mount.optimizers import check_free
from sage.mount.parameters import check_dense, check_plain, ddp_parameters, wrapper_of

AGAIN = "wrap the model in DistributedDataParallel again, mount the reducer on it, then create the optimiser"
NO_JOIN = (
    "join() is not supported with a SAGE hook, because a rank without data has no gradient to reduce: "
    "give all ranks the same number of batches (drop_last=True, or DistributedSampler)"
)
HAS_HOOK = (
    "the model already has a communication hook, and DistributedDataParallel supports only one: wrap the "
    "model again and mount the reducer on it"
)


def checked(model: nn.Module, *, in_backward: bool = False) -> DistributedDataParallel:
    """Return the wrapped model if a hook can be mounted on it.

    Raises:
        ValueError: if it is not wrapped, or wrapped with options that do not fit.
    """
    wrapped = wrapper_of(model)
    if wrapped is None:
        raise ValueError(
            f"ddp_hook takes a model wrapped in DistributedDataParallel, not a {type(model).__name__}: "
            "wrap it first, or use sage.reduce_model for a plain model or sage.fsdp_hook for FSDP2"
        )
    if wrapped.skip_all_reduce_unused_params:
        raise ValueError(
            "skip_all_reduce_unused_params=True skips whole buckets, whose residuals would not be sent: "
            "omit it"
        )
    if getattr(wrapped, "_use_python_reducer", False):
        raise ValueError(
            "torch._dynamo.config.optimize_ddp is 'python_reducer', with which DistributedDataParallel has "
            "no buckets to pass to a hook: use the default True, or sage.reduce_model without the wrapper"
        )
    if wrapped._join_config.enable:
        raise ValueError(NO_JOIN)
    check_dense(wrapped.module)
    check_plain(wrapped.module)
    named = ddp_parameters(wrapped, in_backward=in_backward)
    check_free(named)
    devices = sorted({str(p.device) for p in named.values()})
    if len(devices) > 1:
        raise ValueError(f"the model is on {', '.join(devices)}: expected one device per rank")
    return wrapped
