"""The parameters of a model that a mount reduces, and checks that they are unchanged since mounting."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed._composable.contract import _get_registry
from torch.nn.parallel import DistributedDataParallel

from sage.mount.shards import is_fsdp1, is_fsdp2, is_sharded

Named = Mapping[str, nn.Parameter]
"""Parameters by name, in the model's order."""

REAL = {
    torch.float16: torch.float16,
    torch.bfloat16: torch.bfloat16,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}
"""The real dtype in the flat vector for each gradient dtype that can be reduced."""


def real_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of x in a flat vector: a complex number is stored as a pair of reals."""
    return REAL.get(x.dtype, x.dtype)


def real_shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape of x in a flat vector: (*shape, 2) if it is complex."""
    return (*x.shape, 2) if x.is_complex() else tuple(x.shape)


def as_real(x: Tensor) -> Tensor:
    """View x as a real tensor that shares its memory."""
    return torch.view_as_real(x) if x.is_complex() else x


def trainable(model: nn.Module, *, ignored: frozenset[str] = frozenset()) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient by name; tied parameters occur once.

    Raises:
        ValueError: if there are none, or one of them cannot be reduced; the message gives its name.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad and name not in ignored}
    if not named:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to reduce")
    for name, p in named.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"the parameter {name!r} has no shape yet: run one forward pass before mounting")
        if p.device.type == "meta":
            raise ValueError(
                f"the parameter {name!r} is on the meta device: materialise the model "
                "(model.to_empty, load_state_dict(assign=True)) before mounting"
            )
        if p.dtype not in REAL:
            raise ValueError(
                f"the parameter {name!r} is {p.dtype}: expected {', '.join(str(dtype) for dtype in REAL)}"
            )
    return named


def check_plain(model: nn.Module) -> None:
    """Check that no wrapper already reduces or shards the model's gradients.

    Raises:
        ValueError: if a submodule is wrapped; the message gives its name and what to use instead.
    """
    for name, module in model.named_modules():
        part = f"{name!r} of the model" if name else "the model"
        if isinstance(module, DistributedDataParallel) or "replicate" in (_get_registry(module) or ()):
            raise ValueError(
                f"{part} is wrapped in DistributedDataParallel, which all-reduces its gradients itself: use "
                'sage.ddp_hook(model, "topk", ...) on it, or give reduce_model the model without the wrapper'
            )
        if is_fsdp2(module):
            raise ValueError(
                f"{part} is sharded by fully_shard: use sage.fsdp_hook(model, ..., replicate=...)"
            )
        if is_fsdp1(module):
            raise ValueError(
                f"{part} is wrapped in FullyShardedDataParallel, which SAGE does not support: shard it by "
                "fully_shard and use sage.fsdp_hook, or leave it out"
            )
    for name, p in model.named_parameters():
        if is_sharded(p):
            raise ValueError(
                f"the parameter {name!r} is a DTensor, sharded over a device mesh: reduce_model takes plain "
                "parameters; for fully_shard there is sage.fsdp_hook"
            )


AGAIN = "close() the mount and mount the reducer again, then create the optimiser"


def check_unchanged(
    mounted: Named, model: nn.Module, *, ignored: frozenset[str] = frozenset(), again: str = AGAIN
) -> None:
    """Check that the model's trainable parameters are still those that were mounted.

    The check iterates over the model's parameters once and reads nothing from a device.

    Raises:
        ValueError: if a parameter was frozen, unfrozen, replaced, added or removed; gives the first one.
    """
    now = dict(model.named_parameters())
    for name, p in mounted.items():
        current = now.pop(name, None)
        if current is p and p.requires_grad:
            continue
        if current is p:
            raise ValueError(
                f"the parameter {name!r} was frozen (requires_grad=False) after mounting: {again}"
            )
        if current is None:
            what = "was tied to another one or removed after mounting"
        else:
            what = (
                "was replaced by another object after mounting, for example by load_state_dict(assign=True) "
                "or an assignment to the module"
            )
        raise ValueError(f"the parameter {name!r} {what}: {again}")
    for name, p in now.items():
        if p.requires_grad and name not in ignored:
            raise ValueError(
                f"the parameter {name!r} was unfrozen or added after mounting and would not be reduced: "
                f"{again}"
            )


def check_memory(model: nn.Module) -> None:
    """Check that a broadcast can write to all parameters and buffers.

    Raises:
        ValueError: if the elements of one share memory, or it is not strided or on the meta device; gives
            the first one.
    """
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, x in named:
            if x.layout != torch.strided:
                raise ValueError(f"the {kind} {name!r} is {x.layout}: expected a dense tensor")
            if x.device.type == "meta":
                raise ValueError(
                    f"the {kind} {name!r} is on the meta device: materialise the model before mounting"
                )
            if torch._debug_has_internal_overlap(x) == 1:
                raise ValueError(
                    f"the elements of the {kind} {name!r} share memory, as after expand(), so rank 0's "
                    "values cannot be copied to it: replace it by its .clone()"
                )


def check_dense(model: nn.Module) -> None:
    """Check that all gradients of the model are dense.

    Raises:
        ValueError: if the model has a sparse embedding.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ValueError(
                f"{name or 'the model'} has sparse gradients, which buckets cannot hold: "
                "set sparse=False, or use sage.reduce_model, which makes them dense"
            )


def ddp_parameters(model: DistributedDataParallel, *, in_backward: bool = False) -> dict[str, nn.Parameter]:
    """Return the parameters that DistributedDataParallel reduces, by their names in the module.

    Args:
        model: The wrapped model.
        in_backward: Whether its backward is running; DDP cannot report the number of its parameters then.

    Raises:
        ValueError: if these differ from the parameters that require a gradient now.
    """
    ignored = frozenset(model.parameters_to_ignore)
    named = trainable(model.module, ignored=ignored)
    known = {id(p) for p in model._module_parameters}
    for name, p in named.items():
        if id(p) not in known:
            raise ValueError(
                f"the parameter {name!r} is unknown to DistributedDataParallel and would not be reduced: it "
                "was unfrozen, replaced or added after wrapping; wrap the model again"
            )
    if in_backward:
        return named
    count = model._get_ddp_logging_data().get("num_parameter_tensors", len(named))
    if count != len(named):
        frozen = [name for name, p in model.module.named_parameters() if not p.requires_grad]
        changed = [*named, *frozen] if count < len(named) else frozen
        raise ValueError(
            f"DistributedDataParallel reduces {count} parameters, but {len(named)} require a gradient: "
            f"some of {', '.join(map(repr, changed))} were frozen or unfrozen after wrapping; wrap the model "
            "again"
        )
    return named


def wrapper_of(module: nn.Module) -> DistributedDataParallel | None:
    """Return `module` if it is DistributedDataParallel, possibly compiled by `torch.compile`; else None."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, DistributedDataParallel) else None


def only_kind(named: Named) -> tuple[torch.dtype, torch.device]:
    """Return the common dtype and device of all gradients in the flat vector.

    Raises:
        ValueError: if there are several; the message gives one parameter for each.
    """
    kinds = {(real_dtype(p), p.device): name for name, p in reversed([*named.items()])}
    if len(kinds) > 1:
        names = {f"{dtype} on {device}": name for (dtype, device), name in kinds.items()}
        raise ValueError(
            f"the model's parameters are {', '.join(sorted(names))}, for example "
            f"{', '.join(repr(names[kind]) for kind in sorted(names))}, but a flat gradient has one dtype "
            "and device: convert the model, or use sage.ddp_hook, which has buckets of each dtype"
        )
    return next(iter(kinds))
