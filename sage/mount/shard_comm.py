"""Compression inside sharding: FSDP2's reduce-scatter and all-gather in fewer bytes, for one's own script."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from sage.comm.attached import AttachedWire
from sage.comm.ledger import Ledger
from sage.comm.wire import Wire
from sage.mount.agreement import check_same
from sage.mount.fsdp2 import DefaultAllGather, DefaultReduceScatter, check_fsdp2
from sage.mount.fsdp_collectives import ShardGather, ShardScatter
from sage.mount.loss_scale import watch
from sage.reduction.shard_exchange import ShardOptions
from sage.reduction.shard_formats import GatherFormat, ReduceFormat
from sage.reduction.shard_unit import ShardUnit

Unit = tuple[str, FSDPModule, FSDPParamGroup]
"""A wrapped module's name, itself, and its group of parameters."""


class ShardComm:
    """FSDP2's collectives of a model in compressed formats; created by `sage.shard_comm`.

    Args:
        units: The wrapped modules by name, with their two collectives.
        wires: The wires of all collectives, which share a ledger.
        device: The device of the model.
    """

    def __init__(
        self,
        units: Mapping[str, tuple[FSDPModule, ShardUnit]],
        wires: Sequence[Wire],
        device: torch.device,
    ) -> None:
        self._units, self._wires, self._device = units, wires, device
        self.ledger = wires[0].ledger
        """Counts the bytes of both collectives: `shards`, and the scales of blocks, `shard_scales`."""

    def begin_step(self, loss_scale: float) -> None:
        """Set the loss scale of the next gradients, to which the errors of `loco` are converted.

        Needed only with a loss scale that changes, and not with torch's `GradScaler`, whose scale is found;
        call it before each backward.
        """
        for _, unit in self._units.values():
            unit.scatter.set_loss_scale(loss_scale)

    def drop_errors(self) -> None:
        """Set the errors of `loco` to 0, as after a step that was skipped because it overflowed."""
        for _, unit in self._units.values():
            unit.scatter.drop_errors()

    def forget(self) -> None:
        """Begin anew after the parameters were replaced: errors are 0, `sdp4bit` sends all of them once.

        Call it on every rank.
        """
        for _, unit in self._units.values():
            unit.forget()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """State of this rank by name of the wrapped module, to be saved with the model; ranks differ."""
        return {name: unit.state_dict() for name, (_, unit) in self._units.items()}

    def load_state_dict(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `state_dict` returned on this rank; call it on every rank.

        Raises:
            ValueError: if it belongs to other modules or to another format.
        """
        if saved.keys() != self._units.keys():
            raise ValueError(
                f"the state is that of the modules {', '.join(map(repr, saved)) or 'none'}, and fully_shard "
                f"has wrapped {', '.join(map(repr, self._units))}: load it into the model it was saved from"
            )
        for name, (_, unit) in self._units.items():
            unit.load_state_dict(saved[name], self._device)

    def close(self) -> None:
        """Wait for every rank, then give the model FSDP2's own collectives back."""
        for module, _ in self._units.values():
            module.set_custom_all_gather(DefaultAllGather())
            module.set_custom_reduce_scatter(DefaultReduceScatter())
        for wire in self._wires:
            wire.close()


def shard_comm(
    model: nn.Module,
    *,
    reduce_scatter: ReduceFormat = "exact",
    all_gather: GatherFormat = "exact",
    block: int | None = None,
    node: int | None = None,
    beta: float = 0.8,
    reset_every: int = 1024,
    seed: int = 0,
    timeout: float = 300.0,
    guard: bool = False,
) -> ShardComm:
    """Compress FSDP2's own collectives between the shards of a model that `fully_shard` has wrapped.

        fully_shard(model, mesh=mesh["shard"])
        comm = sage.shard_comm(model, reduce_scatter="loco", all_gather="bf16")

    Gradients are encoded, sent by an all-to-all, decoded, and added in float32 in rank order; `exact` sends
    what FSDP2 would. docs/explanation/sharding.md has the formats, their bytes and their errors.
    `sage.fsdp_hook` may reduce the shards between replicas as well.

    Args:
        model: The model; its wrapped modules are found automatically.
        reduce_scatter: Format of gradients: exact, bf16, fp8, int8, int4, loco or sdp4bit.
        all_gather: Format of parameters: exact, bf16, fp8, int8 or sdp4bit. Every rank computes with the
            decoded ones; the optimiser's stay as they are.
        block: Elements that share a scale; by default 256, in `sdp4bit` 128 of gradients and 2,048 of
            parameters.
        node: Neighbouring ranks of a node: gradients are added within nodes first, and encoded again.
        beta, reset_every: β and T of `loco`.
        seed: Seed of the random rounding of `sdp4bit`.
        timeout, guard: As in `sage.ddp_hook`.

    Raises:
        ValueError: if the model or an option does not fit; the message says what would.
        WireError: if not all ranks arrive within the timeout; later, if a rank is lost.
    """
    options = ShardOptions(
        reduce_scatter=reduce_scatter,
        all_gather=all_gather,
        block=block,
        node=node,
        beta=beta,
        reset_every=reset_every,
        seed=seed,
    )
    check_fsdp2("sage.shard_comm", "without it FSDP2 sends its own collectives")
    units = _units(model)
    device = next(model.parameters()).device
    wires = _Wires(options, device, timeout, guard)
    made = {}
    for number, (name, module, parameters) in enumerate(units):
        whole, levels = wires.of(parameters)
        made[name] = module, ShardUnit(options, whole, levels, number)
    lines = [str(options)]
    lines += [
        f"{name}: {p._param_fqn} {[*p._orig_size]}" for name, _, group in units for p in group.fsdp_params
    ]
    for whole in wires.whole:
        check_same(whole, lines)
    watch()
    for module, unit in made.values():
        module.set_custom_all_gather(ShardGather(unit.gather))
        module.set_custom_reduce_scatter(ShardScatter(unit.scatter))
    return ShardComm(made, wires.all, device)


class _Wires:
    """The wires of a model's shard groups, each created once, with one ledger."""

    def __init__(self, options: ShardOptions, device: torch.device, timeout: float, guard: bool) -> None:
        self._options, self._device, self._timeout, self._guard = options, device, timeout, guard
        self._by_ranks: dict[tuple[int, ...], tuple[Wire, list[Wire]]] = {}
        self._ledger = Ledger()

    @property
    def whole(self) -> list[Wire]:
        """The wires between all shards of a group."""
        return [whole for whole, _ in self._by_ranks.values()]

    @property
    def all(self) -> list[Wire]:
        """All wires."""
        return [wire for whole, levels in self._by_ranks.values() for wire in (whole, *levels)]

    def of(self, parameters: FSDPParamGroup) -> tuple[Wire, list[Wire]]:
        """Wire between the shards of a module, and those within a node and between nodes; collective."""
        info = parameters.mesh_info
        assert isinstance(info, FSDPMeshInfo)
        ranks = tuple(dist.get_process_group_ranks(info.shard_process_group))
        if ranks not in self._by_ranks:
            levels = []
            if self._options.has_two_levels(len(ranks)):
                assert self._options.node is not None
                size = self._options.node
                node, place = divmod(ranks.index(dist.get_rank()), size)
                inside, between = ranks[node * size : (node + 1) * size], ranks[place::size]
                levels = [
                    self._attached(dist.new_group([*those], use_local_synchronization=True))
                    for those in (inside, between)
                ]
            self._by_ranks[ranks] = self._attached(info.shard_process_group), levels
        return self._by_ranks[ranks]

    def _attached(self, group: Any) -> Wire:
        wire = AttachedWire(group, device=self._device, timeout=self._timeout, guard=self._guard)
        wire.ledger = self._ledger
        return wire


def _units(model: nn.Module) -> list[Unit]:
    """The modules that have parameters of their own to gather and to reduce."""
    units: list[Unit] = []
    for name, module in model.named_modules():
        if not isinstance(module, FSDPModule):
            continue
        of_module = module._get_fsdp_state()._fsdp_param_groups
        if len(of_module) > 1:
            raise ValueError(
                f"{name or 'the model'} has {len(of_module)} groups of parameters with meshes of their own, "
                "for which FSDP2 takes no custom collectives: leave out shard_placement_fn, or wrap the "
                "groups' modules one by one"
            )
        for parameters in of_module:
            if not isinstance(parameters.mesh_info, FSDPMeshInfo):
                raise ValueError(
                    f"{name or 'the model'} is replicated and not sharded, so there are no collectives of "
                    "shards: use sage.ddp_hook, or fully_shard with a mesh of shards"
                )
            if isinstance(parameters._reduce_scatter_comm, ShardScatter):
                raise ValueError(
                    f"sage.shard_comm was called on {name or 'the model'} before: close what it returned"
                )
            units.append((name, module, parameters))
    if not units:
        raise ValueError(
            "no module of the model is wrapped by fully_shard: wrap it first; sage.ddp_hook is for "
            "DistributedDataParallel, sage.reduce_model for a plain model"
        )
    return units
