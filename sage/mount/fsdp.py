"""The mount for FSDP2: shards are reduced between replicas, in place of the all-reduce of hybrid sharding.

Every module that `fully_shard` has wrapped hands over its reduce-scattered gradient, this rank's shard of the
mean over the shard group; the reducer takes the mean over the replicas of this shard.
"""
# N = elements of one module's shards

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_common import DDPMeshInfo
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from sage.comm.guest import GuestWire
from sage.comm.wire import Wire
from sage.memory import MemoryOptions
from sage.mount.base import Method, Mount, check_dense, maker
from sage.mount.flat import Flat
from sage.reduce import Memory


class FsdpMount(Mount):
    """A reducer between the replicas of a sharded model. Made by `sage.fsdp_hook`."""


def fsdp_hook(
    model: nn.Module,
    reducer: Method,
    *,
    replicate: DeviceMesh | dist.ProcessGroup,
    memory: Memory | None = None,
    memory_options: MemoryOptions | None = None,
    grouping: str | None = None,
    min_compress: int = 0,
    timeout: float = 300.0,
    guard: bool = False,
    **options: Any,
) -> FsdpMount:
    """Mount a reducer between the replicas of a model that `fully_shard` has sharded over a 1-D mesh.

        mesh = init_device_mesh("cuda", (replicas, shards), mesh_dim_names=("replicate", "shard"))
        fully_shard(model, mesh=mesh["shard"])
        sage.fsdp_hook(model, "threshold", threshold=0.01, replicate=mesh["replicate"])

    Each wrapped module has a reducer of its own, which sees rows of its tensors. The replicas have to begin
    with the same parameters.

    Args:
        model: Its wrapped modules are found by themselves.
        reducer: A reducer's name, with its options as further keywords; or a reducer, or what makes one.
        replicate: The ranks that hold the same shard.
        memory: Error feedback; by default what the reducer asks for.
        memory_options: Its β, γ and so on, as of `sage.memory.ErrorFeedback`.
        grouping: The unit over which the reducer decides; by default what it asks for.
        min_compress: Shards of fewer elements go dense, unless the reducer takes them too.
        timeout: Seconds after which a collective that has not come back is an error on every rank.
        guard: Compare every collective between the ranks before it is made.

    Raises:
        ValueError: for a model, reducer or option that does not fit; says what would.
        WireError: where not all ranks come within the time-out; later, from `backward()`, where one is lost.
    """
    make = maker(reducer, options)
    group = replicate.get_group() if isinstance(replicate, DeviceMesh) else replicate
    wrapped = _wrapped(model, group)
    check_dense(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    device = next(iter(names)).device
    wire = GuestWire(group, device=device, timeout=timeout, guard=guard)
    flats = []
    for module, parameters in wrapped:
        shards = [
            (names[shard.sharded_param], shard.padded_sharded_param_size)
            for shard in parameters.fsdp_params
            if shard.sharded_param.requires_grad
        ]
        if shards:
            flat = Flat(
                shards,
                make(),
                dtype=parameters.fsdp_params[0].sharded_param.dtype,
                device=device,
                memory=memory,
                memory_options=memory_options,
                grouping=grouping,
                min_compress=min_compress,
            )
            flats.append(flat)
            module.set_all_reduce_hook(_hook(flat, [name for name, _ in shards], wire))
            # Else the vector is shorter where a parameter was not used, and nobody can tell by which.
            module.set_reduce_scatter_unused_params(True, recurse=False)
    return FsdpMount(wire, flats)


def _hook(flat: Flat, names: list[str], wire: Wire) -> Callable[[Tensor], None]:
    sizes = [flat.views()[name].numel() for name in names]

    def reduce(shards_N: Tensor) -> None:
        if shards_N.numel() != sum(sizes):
            raise ValueError(
                f"FSDP hands over {shards_N.numel()} elements where {', '.join(names)} come to {sum(sizes)}: "
                "mount the reducer after all parameters have been frozen or unfrozen"
            )
        flat.fit(shards_N)
        views = flat.views()
        for name, piece in zip(names, shards_N.split(sizes), strict=True):
            views[name].view(-1).copy_(piece)
        flat(wire)
        for name, piece in zip(names, shards_N.split(sizes), strict=True):
            piece.copy_(views[name].view(-1))

    return reduce


def _wrapped(model: nn.Module, replicas: dist.ProcessGroup) -> list[tuple[FSDPModule, FSDPParamGroup]]:
    """The modules that have parameters of their own to reduce-scatter, and these."""
    found = []
    for name, module in model.named_modules():
        groups = module._get_fsdp_state()._fsdp_param_groups if isinstance(module, FSDPModule) else []
        for parameters in groups:
            info = parameters.mesh_info
            if isinstance(info, DDPMeshInfo):
                raise ValueError(
                    f"{name or 'the model'} is sharded over a mesh of two dimensions, and so reduced by FSDP "
                    "before a hook sees it: fully_shard(..., mesh=mesh['shard']), and "
                    "replicate=mesh['replicate'] here"
                )
            shared = {*dist.get_process_group_ranks(replicas)} & {*info.mesh.mesh.flatten().tolist()}
            if len(shared) > 1:
                raise ValueError(
                    f"ranks {sorted(shared)} hold different shards of {name or 'the model'}, and so are no "
                    "replicas: replicate is the other dimension of the mesh"
                )
            assert isinstance(module, FSDPModule)
            found.append((module, parameters))
    if not found:
        raise ValueError(
            "no module of the model is wrapped by fully_shard: do that first, or use sage.ddp_hook for "
            "DistributedDataParallel, sage.reduce_model for a plain model"
        )
    return found
