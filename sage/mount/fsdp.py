"""The mount for FSDP2: shards are reduced between replicas, in place of hybrid sharding's all-reduce.

Every module wrapped by `fully_shard` passes on its reduce-scattered gradient, this rank's shard of the mean
over the shard group. The reducer computes the mean over the replicas of this shard.
"""
# N = elements of one module's shards

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_common import DDPMeshInfo
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor

from sage.comm.attached import AttachedWire
from sage.comm.wire import Wire
from sage.mount.agreement import check_same, setup_lines
from sage.mount.base import Method, Mount, maker
from sage.mount.flat import Flat
from sage.mount.fsdp2 import check_fsdp2
from sage.mount.loss_scale import LossScale, current, factor_of
from sage.mount.optimizers import check_free
from sage.mount.origins import of_shard, origins
from sage.mount.other_ranks import ByRank
from sage.mount.parameters import AGAIN, REAL, check_dense
from sage.mount.signature import not_a_hook
from sage.mount.step import Step, anywhere
from sage.reduction.error_feedback import MemoryOptions
from sage.reduction.reducer import Memory


@dataclass(eq=False)
class _Shards:
    """One wrapped module, whose parameters' shards are reduced together."""

    flat: Flat
    parameters: FSDPParamGroup
    names: dict[FSDPParam, str]
    """Names of the parameters that were not frozen at mounting."""


class FsdpMount(Mount):
    """A reducer between the replicas of a sharded model; created by `sage.fsdp_hook`."""

    def __init__(self, model: nn.Module, shards: list[_Shards], wire: Wire, others: Sequence[Wire]) -> None:
        self._shards, self._others = shards, others
        self._step: Step | None = None
        super().__init__(model, wire, [shard.flat for shard in shards], {})

    def mounted(self) -> dict[str, nn.Parameter]:
        # FSDP takes over parameters that were replaced, as by load_state_dict(assign=True).
        return {name: p.sharded_param for shard in self._shards for p, name in shard.names.items()}

    def model_parameters(self) -> dict[str, nn.Parameter]:
        return self.mounted()

    def check(self) -> None:
        known = {p for shard in self._shards for p in shard.names}
        for parameters in groups(self._model):
            for p in parameters.fsdp_params:
                name = p._param_fqn or p._module_info.param_name
                if p in known and not p.sharded_param.requires_grad:
                    raise ValueError(f"the parameter {name!r} was frozen after mounting: {AGAIN}")
                if p not in known and p.sharded_param.requires_grad:
                    raise ValueError(
                        f"the parameter {name!r} was unfrozen or sharded after mounting and would not "
                        f"be reduced: {AGAIN}"
                    )

    def _by_rank(self) -> ByRank:
        place = ", ".join(f"shard {wire.rank} of {wire.world_size}" for wire in self._others)
        return ByRank(self.wire.rank, self.wire.world_size, place)

    def close(self) -> None:
        for shard in self._shards:
            shard.parameters._all_reduce_hook = None
        super().close()
        for wire in self._others:
            wire.close()

    def reduce(self, each: _Shards, shards_N: Tensor) -> None:
        """Replace one module's shards by their means over the replicas; called by FSDP during backward."""
        if self._step is None:
            self.check()
            self._step = self._begin_step(current())
            # FSDP queues its own end of backward too, so ours is queued twice to run after it.
            queue = Variable._execution_engine.queue_callback
            queue(lambda: queue(self._end_backward))
        flat = each.flat
        flat.fit(shards_N)
        views = [flat.views()[name].view(-1) for name in each.names.values()]
        sizes = [view.numel() for view in views]
        if shards_N.numel() != sum(sizes):
            raise ValueError(
                f"FSDP passes {shards_N.numel()} elements, but {', '.join(each.names.values())} have "
                f"{sum(sizes)}: {AGAIN}"
            )
        for view, piece in zip(views, shards_N.split(sizes), strict=True):
            view.copy_(piece)
        self._step.reduce(flat)
        for view, piece in zip(views, shards_N.split(sizes), strict=True):
            piece.copy_(view)

    @torch.no_grad()
    def _begin_step(self, scale: LossScale | None) -> Step:
        # Other shards may have the step skipped, so this flat gradient is not the only one.
        return Step(self.wire, self._lr, loss_scale=self._loss_scale or factor_of(scale))

    def _end_backward(self) -> None:
        """End of backward: every shard's `.grad` is written."""
        step, self._step = self._step, None
        assert step is not None
        if self._others:  # the other shards of this replica may have been finite
            step.skipped = anywhere(step.skipped, self._others, self._flats[0].grad_N.device)
        if step.skipped:
            for p in self.mounted().values():
                if isinstance(p.grad, DTensor):
                    p.grad.to_local().fill_(math.nan)
        self._end_step(step)


@not_a_hook
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

    Each wrapped module has its own reducer, which receives shards (rows) of its tensors. The replicas must
    start with the same parameters.

    Args:
        model: The model; its wrapped modules are found automatically.
        reducer: A reducer's name, with its options as further keywords; or a reducer, or a callable that
            creates one.
        replicate: The ranks that hold the same shard.
        memory, memory_options, grouping, min_compress, timeout, guard: As in `sage.ddp_hook`, but
            `min_compress` counts the elements of a shard.

    Raises:
        ValueError: if the model, reducer or an option does not fit; the message says what would.
        WireError: if not all ranks arrive within the timeout; later, from `backward()`, if a rank is lost.
    """
    check_fsdp2("sage.fsdp_hook", "sage.ddp_hook and sage.reduce_model work with this one")
    make = maker(reducer, options)
    group = replicate.get_group() if isinstance(replicate, DeviceMesh) else replicate
    wrapped = _wrapped(model, group)
    check_dense(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, name in names.items():
        if parameter.requires_grad and (parameter.is_complex() or parameter.dtype not in REAL):
            raise ValueError(
                f"the parameter {name!r} is {parameter.dtype}: fsdp_hook supports only real dtypes; use "
                "sage.ddp_hook or sage.reduce_model for complex ones"
            )
    check_free({name: parameter for parameter, name in names.items()})
    device = next(iter(names)).device
    shards = []
    trained = {name: parameter for parameter, name in names.items() if parameter.requires_grad}
    places = origins(trained, make(), min_compress)
    for _, parameters in wrapped:
        index = parameters.mesh_info.mesh.get_local_rank()
        named = {p: names[p.sharded_param] for p in parameters.fsdp_params if p.sharded_param.requires_grad}
        if named:
            flat = Flat(
                [(name, p.padded_sharded_param_size) for p, name in named.items()],
                make(),
                dtype=parameters.fsdp_params[0].sharded_param.dtype,
                device=device,
                memory=memory,
                memory_options=memory_options,
                grouping=grouping,
                min_compress=min_compress,
                origins={
                    name: of_shard(places[name], p.padded_sharded_param_size, index)
                    for p, name in named.items()
                },
            )
            shards.append(_Shards(flat, parameters, named))
    if not shards:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to reduce")
    wire = AttachedWire(group, device=device, timeout=timeout, guard=guard)
    check_same(wire, setup_lines([shard.flat for shard in shards], reducer, options))
    others = [
        AttachedWire(shard_group, device=device, timeout=timeout, guard=guard)
        for shard_group in _shard_groups(parameters for _, parameters in wrapped)
    ]
    mount = FsdpMount(model, shards, wire, others)
    mount.describe(
        reducer, options, memory_options=memory_options, grouping=grouping, min_compress=min_compress
    )
    of_parameters = {id(shard.parameters): shard for shard in shards}
    for module, parameters in wrapped:
        own_shard = of_parameters.get(id(parameters))
        if own_shard is not None:
            module.set_all_reduce_hook(partial(mount.reduce, own_shard))
            # Otherwise the vector omits unused parameters without saying which.
            module.set_reduce_scatter_unused_params(True, recurse=False)
    return mount


def groups(model: nn.Module) -> list[FSDPParamGroup]:
    """Parameter groups that FSDP reduce-scatters together, of every wrapped module that has any."""
    return [
        parameters
        for module in model.modules()
        if isinstance(module, FSDPModule)
        for parameters in module._get_fsdp_state()._fsdp_param_groups
    ]


def _shard_groups(wrapped: Iterable[FSDPParamGroup]) -> list[dist.ProcessGroup]:
    """Process groups of several ranks over which modules are sharded, without repetitions."""
    by_ranks = {tuple(dist.get_process_group_ranks(group)): group for group in map(_group_of, wrapped)}
    return [group for ranks, group in by_ranks.items() if len(ranks) > 1]


def _group_of(parameters: FSDPParamGroup) -> dist.ProcessGroup:
    return parameters.mesh_info.mesh.get_group()


def _wrapped(model: nn.Module, replicas: dist.ProcessGroup) -> list[tuple[FSDPModule, FSDPParamGroup]]:
    """Modules that have parameters of their own to reduce-scatter, with their parameter groups."""
    modules = []
    for name, module in model.named_modules():
        groups = module._get_fsdp_state()._fsdp_param_groups if isinstance(module, FSDPModule) else []
        for parameters in groups:
            info = parameters.mesh_info
            if isinstance(info, DDPMeshInfo):
                raise ValueError(
                    f"{name or 'the model'} is sharded over a mesh of two dimensions, so FSDP reduces it "
                    "before the hook: call fully_shard(..., mesh=mesh['shard']), and pass "
                    "replicate=mesh['replicate'] here"
                )
            shared = {*dist.get_process_group_ranks(replicas)} & {*info.mesh.mesh.flatten().tolist()}
            if len(shared) > 1:
                raise ValueError(
                    f"ranks {sorted(shared)} have different shards of {name or 'the model'}, so they are not "
                    "replicas: pass the other dimension of the mesh as replicate"
                )
            assert isinstance(module, FSDPModule)
            modules.append((module, parameters))
    if not modules:
        raise ValueError(
            "no module of the model is wrapped by fully_shard: wrap it first, or use sage.ddp_hook for "
            "DistributedDataParallel, sage.reduce_model for a plain model"
        )
    return modules
