"""`--mount fsdp`: FSDP2 shards each replica, and the reducer takes the mean of its shards between replicas.

Each `shards` neighbouring ranks share a replica, as the ranks of a node. The gradients of the ranks that hold
the same shard are reduced as the whole gradient is under `--mount whole`, with a reducer and error feedback
for each unit (`sage.train.sharded_model`). FSDP2 calls its all-reduce hook with each unit's gradient
during backward, once it is summed over the shards; the reduction runs there, in place of the all-reduce of
hybrid sharding. With one shard, every rank is a replica.

Whether to skip a step is known only at the end of backward, as under `--mount ddp`, so the state of each unit
is copied before its reduction if steps may be skipped, and all ranks vote once.
"""
# N = elements of a unit's shards

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sage.comm.process import ProcessWire
from sage.comm.replicas import Replicas
from sage.comm.subgroup import SubgroupWire, subgroups
from sage.comm.wire import Wire
from sage.config import Config, check_ranks
from sage.data.dataset import Batch, moved
from sage.mount.origins import origins
from sage.mount.parameters import check_dense, only_kind, trainable
from sage.mount.reduction_seconds import fields_of_sum
from sage.reduction.shard_exchange import ShardOptions
from sage.train.backward import LossModule, Pass
from sage.train.fsdp_bucket import FsdpBucket
from sage.train.mount_limits import check_reducer, check_shards
from sage.train.mounted import Parts, StepGradient
from sage.train.mounted_buckets import MountedBuckets
from sage.train.optim import joint_norm
from sage.train.sharded_model import MIB, ShardedModel, num_reduced


class MountedFsdp(MountedBuckets[FsdpBucket]):
    """A model sharded by FSDP2, whose shards are reduced between replicas during backward.

    Args:
        parts: The parts of the run.
        wire: The communicator of `parts`, whose ranks are processes.

    Raises:
        ValueError: The shards do not divide the ranks, the model has parameters that FSDP2 cannot shard, or
            the reducer or an option needs the whole gradient, and there are several units or shards.
    """

    def __init__(self, parts: Parts, wire: ProcessWire) -> None:
        super().__init__(parts)
        config = parts.config
        check_ranks(config.shards, wire.world_size)
        check_reducer(config, parts.reducer, "FSDP2")
        _check_parameters(parts.model)
        named = trainable(parts.model)
        # Checked before any collective, so that all ranks raise the same error.
        places = origins(named, parts.reducer, config.min_compress)
        num_units = num_reduced(parts.model, config.bucket_mb * MIB)
        check_shards(config, parts.reducer, num_units, sum(p.nbytes for p in named.values()))
        self._num_elements = sum(p.numel() for p in named.values())
        options = ShardOptions(
            reduce_scatter=config.shard_reduce,
            all_gather=config.shard_gather,
            block=config.shard_block,
            node=config.shard_node,
            seed=config.seed,
        )
        self._within, self._between = _wires(wire, config.shards, self.device)
        self._sharded = ShardedModel(
            parts.model,
            LossModule(parts.model, parts.task),
            unit_mb=config.bucket_mb,
            within=self._within,
            levels=_levels(wire, config, options, self.device),
            options=options,
            device=self.device,
        )
        self.trained = nn.ParameterList(self._sharded.local.values())
        self._buckets: list[FsdpBucket] = []
        for module, group in self._sharded.units:
            of_unit = {
                self._sharded.names[p.sharded_param]: p
                for p in group.fsdp_params
                if p.sharded_param.requires_grad
            }
            if of_unit:
                bucket = FsdpBucket(
                    config, of_unit, self._sharded.local, parts.reducer, places, self._within.rank
                )
                self._buckets.append(bucket)
                module.set_all_reduce_hook(partial(self._reduce, bucket))
        assert len(self._buckets) == num_units
        self.flats = [bucket.flat for bucket in self._buckets]
        self._pass = Pass(config, self._sharded.root, self.device, parts.loss_scale)
        self._lr, self._sampled, self._exposed = 0.0, False, 0.0
        self._samples: list[Tensor] = []

    def compute(self, batches: list[Batch], lr: float, *, sampled: bool) -> StepGradient:
        self._lr, self._sampled, self._samples, self._reduced = lr, sampled, [], []
        self._sharded.drop_gradients()
        self._sharded.begin_step(float(self.loss_scale.scale), may_skip=self.may_skip)
        waited = self.wire.ledger.seconds
        loss = torch.zeros((), device=self.device)
        for batch in batches:
            if len(batches) > 1:
                self._sharded.sync(batch is batches[-1])
            loss += self._pass(moved(batch, self.device), self.config.accumulate)
        self._exposed = self.wire.ledger.seconds - waited
        self._sharded.drop_gradients()  # the gradients are in `.grad` of the local parts
        if self._is_skipped():
            self._sharded.put_back()
            return StepGradient(loss=loss, skipped=True)
        for bucket in self._buckets:
            assert bucket.reduced is not None
            self._reduced.append(bucket.reduced)
            bucket.set_gradients()
        return StepGradient(loss=loss, skipped=False, sample=torch.cat(self._samples) if sampled else None)

    @torch.no_grad()
    def _reduce(self, bucket: FsdpBucket, shards_N: Tensor) -> None:
        """Reduce a unit; called by FSDP2 during backward."""
        span: AbstractContextManager[None] = nullcontext()
        if self.spans.is_on:
            span = self.spans.span(f"unit of {shards_N.numel()} elements")
        with span:
            bucket.load(shards_N)
            scale = float(self.loss_scale.scale) if self.loss_scale.enabled else None
            bucket.prepare(scale, self.wire, checked=self.may_skip)
            if self._sampled:
                self._samples.append(self._sample(bucket.flat.grad_N))
            bucket.reduce(self._between, self._lr)

    # Further parts of the interface.

    def state_dict(self) -> dict[str, dict[str, Any]]:
        shards = self._sharded.state_dict()
        return {**super().state_dict(), **({"shards": shards} if shards else {})}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        super().load_state_dict(state)
        if "shards" in state:
            self._sharded.load_state_dict(state["shards"])
        else:
            self._sharded.forget()

    def is_finite_here(self, batches: list[Batch]) -> bool:
        self._sharded.sync(False)
        for batch in batches:
            self._pass(moved(batch, self.device), self.config.accumulate)
        self._sharded.sync(True)
        return all(bool(gradient.isfinite().all()) for gradient in self._sharded.take_unreduced())

    def evaluating(self) -> AbstractContextManager[None]:
        return self._sharded.gathered()

    def replicas(self) -> Replicas:
        return Replicas(self.wire, self._sharded.local.items(), shards=self.config.shards)

    def norm(self) -> Tensor:
        local = joint_norm(self.gradient)
        if self._within.world_size == 1:
            return local
        return self._within.sum(local.square(), kind="control").sqrt()

    def gathered(self, shared: dict[str, Any], trained: Sequence[Tensor]) -> dict[str, Any]:
        return self._sharded.whole(shared, trained)

    def scattered(self, shared: dict[str, Any], trained: Sequence[Tensor]) -> dict[str, Any]:
        return self._sharded.part(shared, trained)

    @property
    def num_elements(self) -> int:
        return self._num_elements

    def seconds(self) -> dict[str, float]:
        """Encoding and decoding, summed over units, and all collectives: on CPUs nothing overlaps them."""
        if not self._reduced or self.device.type == "cuda":
            return {}
        return {**fields_of_sum([flat.seconds for flat in self.flats]), "exposed_seconds": self._exposed}


def _check_parameters(model: nn.Module) -> None:
    """Refuse parameters that FSDP2 cannot shard.

    Raises:
        ValueError: One is sparse, complex or a scalar, or several dtypes occur.
    """
    check_dense(model)
    only_kind(trainable(model))
    for name, p in model.named_parameters():
        if p.is_complex() or p.dim() == 0:
            what = "complex" if p.is_complex() else "a scalar"
            raise ValueError(
                f"the parameter {name!r} is {what}, which FSDP2 cannot shard: use --mount whole or ddp"
            )


def _wires(wire: ProcessWire, shards: int, device: torch.device) -> tuple[SubgroupWire, Wire]:
    """Return the wires within this rank's replica, and between the ranks that have the same shard."""
    world_size = wire.world_size
    within = subgroups(
        wire, [range(first, first + shards) for first in range(0, world_size, shards)], device=device
    )
    columns = [range(shard, world_size, shards) for shard in range(shards)]
    between = subgroups(wire, columns, device=device) if shards > 1 else wire
    assert within is not None
    assert between is not None
    for replica_wire in (within, between):
        replica_wire.ledger, replica_wire.guard = wire.ledger, wire.guard
    return within, between


def _levels(
    wire: ProcessWire, config: Config, options: ShardOptions, device: torch.device
) -> tuple[SubgroupWire, ...]:
    """Return the wires within a node of this replica and between its nodes, if there are two levels."""
    if not options.has_two_levels(config.shards):
        return ()
    assert options.node is not None
    nodes = [range(first, first + options.node) for first in range(0, wire.world_size, options.node)]
    between = [
        range(first + place, first + config.shards, options.node)
        for first in range(0, wire.world_size, config.shards)
        for place in range(options.node)
    ]
    levels = []
    for groups in (nodes, between):
        level = subgroups(wire, groups, device=device)
        assert level is not None
        level.ledger, level.guard = wire.ledger, wire.guard
        levels.append(level)
    return tuple(levels)
