"""`sage.shard_comm`: FSDP2's own collectives in fewer bytes (docs/explanation/sharding.md)."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import processes
from mounted import alone, network, once
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import DTensor, Shard

import sage
from sage.comm.wire import Wire
from sage.mount.shard_comm import ShardComm

FORMATS: list[dict[str, Any]] = [
    {"reduce_scatter": "int4", "all_gather": "bf16"},
    {"reduce_scatter": "loco", "all_gather": "int8"},
    {"reduce_scatter": "sdp4bit", "all_gather": "sdp4bit"},
]


def sharded(mesh: DeviceMesh, **options: Any) -> tuple[nn.Sequential, ShardComm]:
    """The network, with two of its layers and the rest wrapped, and its collectives."""
    model = network()
    for layer in (model[4], model[6], model):
        fully_shard(layer, mesh=mesh)
    return model, sage.shard_comm(model, **options)


def of_fsdp2(mesh: DeviceMesh, rank: int) -> list[Tensor]:
    """This rank's shard of every gradient by FSDP2's own collectives."""
    dense = network()
    for layer in (dense[4], dense[6], dense):
        fully_shard(layer, mesh=mesh)
    once(dense, rank, 0)
    return local(dense)


def local(model: nn.Module) -> list[Tensor]:
    """This rank's shard of every gradient."""
    return [part(p.grad).clone() for p in model.parameters()]


def part(x: Tensor | None) -> Tensor:
    assert isinstance(x, DTensor)
    return x.to_local()


def of_ranks(world_size: int, step: int = 0) -> list[list[Tensor]]:
    """The whole gradient of each rank."""
    found = []
    for rank in range(world_size):
        once(model := network(), rank, step)
        found.append([torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()])
    return found


def mean(gradients: list[list[Tensor]]) -> list[Tensor]:
    """The mean of gradients, added in their order."""
    total = [x.clone() for x in gradients[0]]
    for gradient in gradients[1:]:
        for x, y in zip(total, gradient, strict=True):
            x += y
    return [x / len(gradients) for x in total]


def rows(x: Tensor, index: int, shards: int) -> Tensor:
    """The rows of a shard."""
    most = -(-len(x) // shards)
    return x[index * most : (index + 1) * most]


def same(ours: list[Tensor], theirs: list[Tensor], index: int, shards: int) -> bool:
    return all(torch.equal(a, rows(b, index, shards)) for a, b in zip(ours, theirs, strict=True))


def off(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference."""
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True) if a.numel())


@cache
def seen(world_size: int) -> list[dict[str, Any]]:
    """What the ranks of one replica have found; they start once."""

    def work(wire: Wire) -> dict[str, Any]:
        mesh = init_device_mesh("cpu", (world_size,))
        found: dict[str, Any] = {}
        dense = of_fsdp2(mesh, wire.rank)
        model, comm = sharded(mesh)
        once(model, wire.rank, 0)
        found["bits of FSDP2"] = all(torch.equal(a, b) for a, b in zip(local(model), dense, strict=True))
        found["off FSDP2"] = off(local(model), dense)
        found["in rank order"] = same(local(model), mean(of_ranks(world_size)), wire.rank, world_size)
        comm.close()
        found["bytes"] = bytes_of(wire, mesh)
        found["accumulates"] = accumulates(wire, mesh)
        found["resumes"] = {str(options): resumes(wire, mesh, options) for options in FORMATS}
        found["overflow"] = overflow(wire, mesh)
        found["bf16 gradients"] = of_halves(wire, mesh)
        return found

    return processes(world_size, work)


def bytes_of(wire: Wire, mesh: DeviceMesh) -> dict[str, dict[str, int]]:
    """Payload of a step by format, without that of the all-gathers."""
    found = {}
    for name in ("exact", "bf16", "int4"):
        model, comm = sharded(mesh, reduce_scatter=name, block=64)
        model(torch.zeros(2, 1, 8, 8))
        before = comm.ledger.copy()
        once(model, wire.rank, 0)  # gathers once in forward, and again in backward
        with_backward = comm.ledger.since(before).payload
        found[name] = dict(with_backward)
        comm.close()
    return found


def accumulates(wire: Wire, mesh: DeviceMesh) -> tuple[bool, int]:
    """Whether two micro-batches are reduced once, as their sum; and the number of reductions."""
    model, comm = sharded(mesh)
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    once(model, wire.rank, 0)
    model.set_requires_gradient_sync(True)
    once(model, wire.rank, 1)
    first, second = of_ranks(wire.world_size, 0), of_ranks(wire.world_size, 1)
    both = [[x + y for x, y in zip(a, b, strict=True)] for a, b in zip(first, second, strict=True)]
    is_sum = same(local(model), mean(both), wire.rank, wire.world_size)
    calls = comm.ledger.calls["reduce_scatter"]
    comm.close()
    return is_sum, calls


def resumes(wire: Wire, mesh: DeviceMesh, options: dict[str, Any]) -> bool:
    """Whether the gradients after a stop and a load equal those of an uninterrupted script."""
    (whole, stays), (model, comm) = sharded(mesh, **options), sharded(mesh, **options)
    for step in (0, 1):
        once(whole, wire.rank, step)
        with torch.no_grad():
            for p, q in zip(whole.parameters(), model.parameters(), strict=True):
                part(p).add_(part(p.grad), alpha=-0.1)
                part(q).copy_(part(p))
    for ours, theirs in zip(model.buffers(), whole.buffers(), strict=True):
        ours.copy_(theirs)
    comm.load_state_dict(copy.deepcopy(stays.state_dict()))
    for each in (whole, model):
        each.zero_grad()
        once(each, wire.rank, 2)
    is_same = all(torch.equal(a, b) for a, b in zip(local(whole), local(model), strict=True))
    stays.close()
    comm.close()
    return is_same


def of_halves(wire: Wire, mesh: DeviceMesh) -> tuple[float, set[torch.dtype]]:
    """Bytes saved by int8 of gradients that FSDP2 reduces in bf16, by element; the dtype it returns."""
    payload = []
    for name in ("exact", "int8"):
        model = network()
        fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.bfloat16))
        comm = sage.shard_comm(model, reduce_scatter=name)
        once(model, wire.rank, 0)
        payload.append(comm.ledger.payload["shards"])
        comm.close()
    rows_of_each = sum(-(-len(p) // wire.world_size) * p[0].numel() for p in network().parameters())
    saved = (payload[0] - payload[1]) / wire.world_size / rows_of_each
    return saved, {x.dtype for x in local(model)}


def overflow(wire: Wire, mesh: DeviceMesh) -> tuple[bool, bool, bool]:
    """A gradient that is not finite on the last rank: seen by all, kept by none, and dropped on request."""
    model, comm = sharded(mesh, reduce_scatter="loco")
    once(model, wire.rank, 0)
    model.zero_grad()
    is_last = wire.rank == wire.world_size - 1
    (model(torch.ones(2, 1, 8, 8)).sum() * (float("inf") if is_last else 1.0)).backward()
    is_seen = not all(bool(x.isfinite().all()) for x in local(model))
    model.zero_grad()
    once(model, wire.rank, 1)
    is_finite = all(bool(x.isfinite().all()) for x in local(model))
    comm.drop_errors()
    is_dropped = all(state["errors"] == {"0": {}} for state in comm.state_dict().values())
    comm.close()
    return is_seen, is_finite, is_dropped


def test_exact_has_the_bits_of_fsdp2_between_two_shards() -> None:
    assert [view["bits of FSDP2"] for view in seen(2)] == [True, True]


@pytest.mark.parametrize("world_size", [2, 3])
def test_exact_is_the_mean_in_rank_order_to_the_bit_and_within_1e_6_of_fsdp2(world_size: int) -> None:
    for view in seen(world_size):  # three ranks: parameters of 4, 10, 20 and 40 rows are padded
        assert view["in rank order"]
        assert view["off FSDP2"] < 1e-6


def test_the_ledger_has_the_bytes_by_the_formula() -> None:
    # Units of two ranks, in elements of a shard: a matrix of 40 rows, one of 20, and all the rest.
    shards = [20 * 144 + 20, 10 * 40 + 10, 4 * 9 // 2 + 3 * 4 // 2 + 5 * 20 + 5]
    for view in seen(2):
        exact, bf16, int4 = (view["bytes"][name] for name in ("exact", "bf16", "int4"))
        reduced = exact["shards"] - bf16["shards"]
        assert reduced == 2 * 2 * sum(shards)  # two rows of each unit, at 2 bytes instead of 4
        assert exact["shards"] - int4["shards"] == sum(2 * (4 * n - -(-n // 2)) for n in shards)
        assert "shard_scales" not in exact
        assert int4["shard_scales"] == sum(2 * 4 * -(-n // 64) for n in shards)


@pytest.mark.parametrize("world_size", [2, 3])
def test_micro_batches_are_reduced_once_with_the_last_one(world_size: int) -> None:
    for view in seen(world_size):
        assert view["accumulates"] == (True, 3)  # of three units


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_script_that_saves_and_loads_the_state_goes_on_to_the_bit(world_size: int) -> None:
    for view in seen(world_size):
        assert [name for name, is_same in view["resumes"].items() if not is_same] == []


@pytest.mark.parametrize("world_size", [2, 3])
def test_an_overflow_is_seen_by_every_rank_and_stays_in_no_error(world_size: int) -> None:
    for view in seen(world_size):
        assert view["overflow"] == (True, True, True)


@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_in_bf16_are_encoded_too(world_size: int) -> None:
    for view in seen(world_size):
        assert view["bf16 gradients"] == (1.0, {torch.float32})


def test_two_replicas_of_two_shards_reduce_within_and_then_between() -> None:
    def work(wire: Wire) -> tuple[bool, bool, float, float, set[str]]:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        model, comm = sharded(mesh["shard"])
        mount = sage.fsdp_hook(model, "exact", replicate=mesh["replicate"])
        once(model, wire.rank, 0)
        gradients = of_ranks(4)
        wanted = mean([mean(gradients[:2]), mean(gradients[2:])])
        is_same = same(local(model), wanted, wire.rank % 2, 2)
        mount.close()
        comm.close()
        native, comm = sharded(mesh)  # FSDP2's hybrid sharding reduces between replicas itself
        once(native, wire.rank, 0)
        is_native = same(local(native), wanted, wire.rank % 2, 2)
        off_fsdp2 = off(local(native), of_fsdp2(mesh, wire.rank))
        comm.close()
        model, comm = sharded(mesh["shard"], reduce_scatter="int8", block=16)
        mount = sage.fsdp_hook(model, "topk", density=0.5, replicate=mesh["replicate"])
        once(model, wire.rank, 0)
        sent = {kind for ledger in (comm.ledger, mount.wire.ledger) for kind in ledger.payload}
        largest = max(float(x.abs().max()) for x in local(model))
        mount.close()
        comm.close()
        return is_same, is_native, off_fsdp2, largest, sent

    for is_same, is_native, off_fsdp2, largest, sent in processes(4, work):
        assert is_same
        assert is_native
        assert off_fsdp2 < 1e-6
        assert 0 < largest < 10
        assert {"shards", "shard_scales", "values", "indices"} <= sent


def test_four_shards_of_two_nodes_reduce_in_two_levels() -> None:
    def work(wire: Wire) -> dict[str, tuple[float, dict[str, int], bool]]:
        mesh, found = init_device_mesh("cpu", (4,)), {}
        wanted = [rows(x, wire.rank, 4) for x in mean(of_ranks(4))]
        for name in ("exact", "int8", "loco", "sdp4bit"):
            model, comm = sharded(mesh, reduce_scatter=name, node=2, block=32)
            model(torch.zeros(2, 1, 8, 8))
            before = comm.ledger.copy()
            once(model, wire.rank, 0)
            payload = dict(comm.ledger.since(before).payload)
            again, its = sharded(mesh, reduce_scatter=name, node=2, block=32)
            its.load_state_dict(comm.state_dict())
            gradients = []
            for each in (model, again):
                each.zero_grad()
                once(each, wire.rank, 1)
                gradients.append(local(each))
            is_same = all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
            its.close()
            comm.close()
            model, comm = sharded(mesh, reduce_scatter=name, node=2, block=32)
            once(model, wire.rank, 0)
            found[name] = off(local(model), wanted), payload, is_same
            if name == "exact":
                assert off(local(model), of_fsdp2(mesh, wire.rank)) < 1e-6
            comm.close()
        return found

    shards = [10 * 144 + 10, 5 * 40 + 5, 1 * 9 + 3 * 1 + 3 * 20 + 3]
    for found in processes(4, work):
        errors = {name: error for name, (error, _, _) in found.items()}
        assert errors["exact"] == 0 < errors["int8"] < 0.005
        assert errors["int8"] < errors["loco"] < 0.05
        assert 1e-6 < errors["sdp4bit"] < 0.05
        assert all(is_same for _, _, is_same in found.values())
        exact, loco = found["exact"][1]["shards"], found["loco"][1]["shards"]
        # Within a node two rows of two shards each, between nodes two of one, at half a byte.
        assert exact - loco == sum(4 * 4 * n - 2 * n - 2 * -(-n // 2) for n in shards)


def test_quantised_parameters_are_the_same_on_all_ranks_and_the_optimisers_stay_exact() -> None:
    def work(wire: Wire) -> tuple[list[Tensor], bool]:
        model, comm = sharded(init_device_mesh("cpu", (2,)), all_gather="int8")
        own = network()
        kept = all(
            torch.equal(part(p), rows(q.detach(), wire.rank, 2))
            for p, q in zip(model.parameters(), own.parameters(), strict=True)
        )
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.unshard()
        gathered = [p.detach().clone() for p in model.parameters()]
        comm.close()
        return gathered, kept

    (ours, kept), (theirs, _) = processes(2, work)
    assert kept
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert 0 < off(ours, [p.detach() for p in network().parameters()]) < 0.01


@alone
def test_what_shard_comm_cannot_serve_is_refused() -> None:
    mesh = init_device_mesh("cpu", (1,))
    with pytest.raises(ValueError, match="no module of the model is wrapped by fully_shard: wrap it first"):
        sage.shard_comm(network())
    model, comm = sharded(mesh, reduce_scatter="int8")
    with pytest.raises(ValueError, match="was called on the model before|was called on 4 before"):
        sage.shard_comm(model)
    with pytest.raises(ValueError, match="the state is that of the modules 'a', and fully_shard has wrapped"):
        comm.load_state_dict({"a": {}})
    comm.close()
    sage.shard_comm(model, reduce_scatter="bf16").close()
    with pytest.raises(ValueError, match="reduce_scatter='fp4': expected one of exact, bf16"):
        sage.shard_comm(model, reduce_scatter="fp4")  # type: ignore[arg-type]
    several = network()
    group = dist.new_group([0])
    assert isinstance(group, dist.ProcessGroup)
    other = FSDPMeshInfo(DeviceMesh.from_group(group, "cpu"), shard_mesh_dim=0)

    def place(p: nn.Parameter) -> ShardPlacementResult | None:
        return ShardPlacementResult(Shard(0), other) if p.dim() == 1 else None

    fully_shard(several, mesh=mesh, shard_placement_fn=place)
    with pytest.raises(ValueError, match="the model has 2 groups of parameters with meshes of their own"):
        sage.shard_comm(several)


def test_ranks_with_other_formats_and_other_divide_factors_are_refused_in_one_line() -> None:
    def work(wire: Wire) -> list[str]:
        mesh, said = init_device_mesh("cpu", (2,)), []
        try:
            sharded(mesh, block=16 * (1 + wire.rank))
        except ValueError as error:
            said.append(str(error))
        model, _ = sharded(mesh, reduce_scatter="int8", node=None)
        assert isinstance(model, FSDPModule)
        model.set_gradient_divide_factor(3.0)
        try:
            once(model, wire.rank, 0)
        except ValueError as error:
            said.append(str(error))
        model.set_force_sum_reduction_for_comms(True)
        once(model, wire.rank, 0)
        try:
            sharded(mesh, reduce_scatter="int8", node=3)
        except ValueError as error:
            said.append(str(error))
        return said

    for ours, factor, ranks in processes(2, work):
        assert "only sums and means are supported: call set_force_sum_reduction_for_comms(True)" in factor
        assert "the ranks mount different configurations: rank 0 has ShardOptions(" in ours
        assert "node=3: 2 shards cannot be divided into nodes of that size; expected one of 1, 2" in ranks
