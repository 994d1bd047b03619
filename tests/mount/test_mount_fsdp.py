"""Tests of `sage.fsdp_hook` between the replicas of a sharded model: docs/explanation/mounts.md."""
# B = batch

import copy
from functools import cache
from typing import Any

import pytest
import torch
from gloo import processes
from mounted import Refuses, alone, loss, network, once
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import sage
from sage.comm.wire import Wire
from sage.mount.fsdp import FsdpMount


def sharded(mesh: DeviceMesh, reducer: str = "topk", **options: Any) -> tuple[nn.Sequential, FsdpMount]:
    """The network, with two of its layers and the rest wrapped, and its mount."""
    model = network()
    for layer in (model[4], model[6], model):
        fully_shard(layer, mesh=mesh["shard"])
    return model, sage.fsdp_hook(model, reducer, replicate=mesh["replicate"], **options)


def local(model: nn.Module) -> list[Tensor]:
    """This rank's shard of every gradient."""
    return [part(p.grad).clone() for p in model.parameters()]


def part(x: Tensor | None) -> Tensor:
    """This rank's shard of it."""
    assert isinstance(x, DTensor)
    return x.to_local()


def one_by_one() -> DeviceMesh:
    """One replica of one shard, for tests of a single rank."""
    return init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard"))


@cache
def seen() -> list[dict[str, Any]]:
    """The results of four ranks, two replicas of two shards, which start once."""

    def work(wire: Wire) -> dict[str, Any]:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        return {"nothing lost": nothing_lost(wire, mesh), "goes on": resumes_equally(wire, mesh)}

    def nothing_lost(wire: Wire, mesh: DeviceMesh) -> float:
        """The error of the sum of all means against what the replicas have sent of this shard."""
        model, mount = sharded(mesh, density=0.1)
        exact, dense = sharded(mesh, "exact")
        residuals = {name: held["residual_N"] for name, held in mount.state_dict().items()}
        sums = {name: torch.zeros_like(part(p)) for name, p in model.named_parameters()}
        for step in range(3):
            for each in (model, exact):
                each.zero_grad()
                once(each, wire.rank, step)
            for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
                sums[name] += part(q.grad) - part(p.grad)
        off = 0.0
        for name, kept in sums.items():
            mean = mount.wire.mean(residuals[name].clone())[: kept.shape[0]]
            off = max(off, float((mean - kept).abs().max()))
        mount.close()
        dense.close()
        return off

    def resumes_equally(wire: Wire, mesh: DeviceMesh) -> bool:
        """Whether the gradients after a stop and a load equal those of an uninterrupted script."""
        (whole, stays), (model, mount) = sharded(mesh, density=0.1), sharded(mesh, density=0.1)
        once(whole, wire.rank, 0)
        mount.load_state_dict(copy.deepcopy(stays.state_dict()))
        for each in (whole, model):
            each.zero_grad()
            once(each, wire.rank, 1)
        same = all(torch.equal(a, b) for a, b in zip(local(whole), local(model), strict=True))
        stays.close()
        mount.close()
        return same

    return processes(4, work)


def test_the_replicas_keep_the_unsent_part_of_a_shard() -> None:
    assert all(view["nothing lost"] < 1e-6 for view in seen())


def test_a_mount_that_is_saved_and_loaded_continues_as_if_uninterrupted() -> None:
    assert all(view["goes on"] for view in seen())


@alone
def test_a_module_is_reduced_after_the_last_micro_batch() -> None:
    mesh = one_by_one()
    model, mount = sharded(mesh, "exact")
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    once(model, 0, 0)
    assert not mount.wire.ledger.payload["values"]
    model.set_requires_gradient_sync(True)
    once(model, 0, 1)
    assert mount.wire.ledger.payload["values"] == 4 * sum(p.numel() for p in model.parameters())
    both = network()
    for step in range(2):
        loss(both, 0, step).backward()
    for mean, p in zip(local(model), both.parameters(), strict=True):
        torch.testing.assert_close(mean, p.grad)
    mount.close()


@alone
def test_unused_parameters_send_their_residual_and_frozen_ones_have_no_state() -> None:
    mesh = one_by_one()

    class UsesSomeParameters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.frozen = (nn.Parameter(torch.ones(3, 2)) for _ in range(3))
            self.frozen.requires_grad_(False)

        def forward(self, x_B: Tensor, all_of_it: bool) -> Tensor:
            of_used = (x_B @ self.used).sum()
            return of_used + (x_B[:, :, None] * self.unused).sum() if all_of_it else of_used

    model = UsesSomeParameters()
    fully_shard(model, mesh=mesh["shard"])
    mount = sage.fsdp_hook(model, "topk", density=0.5, replicate=mesh["replicate"])
    assert set(mount.state_dict()) == {"used", "unused"}
    x_B = torch.arange(6.0).view(2, 3)
    model(x_B, True).backward()
    kept = mount.state_dict()["unused"]["residual_N"].clone()
    model.zero_grad()
    model(x_B, False).backward()
    assert torch.equal(part(model.unused.grad), kept)
    assert model.frozen.grad is None
    mount.close()


@alone
def test_shards_are_reduced_in_fsdps_reduce_dtype() -> None:
    mesh = one_by_one()
    model = network()
    fully_shard(model, mesh=mesh["shard"], mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.bfloat16))
    mount = sage.fsdp_hook(model, "exact", replicate=mesh["replicate"])
    once(model, 0, 0)
    assert mount.wire.ledger.payload["values"] == 2 * sum(p.numel() for p in model.parameters())
    assert {grad.dtype for grad in local(model)} == {torch.float32}
    mount.close()


@alone
def test_small_shards_are_sent_dense() -> None:
    mesh = one_by_one()
    model, mount = sharded(mesh, density=0.01, min_compress=300)
    once(model, 0, 0)
    once(own := network(), 0, 0)
    for mean, p in zip(local(model), own.parameters(), strict=True):
        assert p.grad is not None
        assert torch.allclose(mean, p.grad) == (p.numel() < 300)
    mount.close()


@alone
def test_a_wrapped_module_that_is_frozen_has_no_state() -> None:
    mesh, model = one_by_one(), network()
    model[4].requires_grad_(False)
    for layer in (model[4], model):
        fully_shard(layer, mesh=mesh["shard"])
    mount = sage.fsdp_hook(model, "topk", replicate=mesh["replicate"])
    once(model, 0, 0)
    assert set(mount.state_dict()) == {name for name, p in model.named_parameters() if p.requires_grad}
    mount.close()


@alone
def test_an_error_of_a_reducer_is_raised_by_backward() -> None:
    mesh, model = one_by_one(), network()
    fully_shard(model, mesh=mesh["shard"])
    sage.fsdp_hook(model, Refuses, replicate=mesh["replicate"])
    once(model, 0, 0)
    with pytest.raises(ArithmeticError, match="no such gradient"):
        once(model, 0, 1)


@alone
def test_a_model_that_the_hook_cannot_serve_is_refused() -> None:
    mesh = one_by_one()
    with pytest.raises(ValueError, match="no module of the model is wrapped by fully_shard"):
        sage.fsdp_hook(network(), "exact", replicate=mesh["replicate"])
    sparse = nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Linear(6, 2))
    fully_shard(sparse, mesh=mesh["shard"])
    with pytest.raises(ValueError, match="0 has sparse gradients, which buckets cannot hold"):
        sage.fsdp_hook(sparse, "exact", replicate=mesh["replicate"])
    model = network()
    fully_shard(model, mesh=mesh)
    with pytest.raises(ValueError, match="the model is sharded over a mesh of two dimensions"):
        sage.fsdp_hook(model, "exact", replicate=mesh["replicate"])


@alone
def test_parameters_frozen_or_unfrozen_after_mounting_are_refused_by_name() -> None:
    mesh = one_by_one()
    for was, complaint in (
        (True, "'4.weight' was frozen after mounting"),
        (False, "'4.weight' was unfrozen"),
    ):
        model = network()
        model[4].weight.requires_grad_(was)
        for layer in (model[4], model):
            fully_shard(layer, mesh=mesh["shard"])
        mount = sage.fsdp_hook(model, "topk", replicate=mesh["replicate"])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        once(model, 0, 0)
        optimizer.step()
        model[4].weight.requires_grad_(not was)
        with pytest.raises(ValueError, match=complaint):
            optimizer.step()
        with pytest.raises(ValueError, match="a reducer is already mounted on the parameter '0.weight'"):
            sage.fsdp_hook(model, "topk", replicate=mesh["replicate"])
        mount.close()


def test_the_group_of_shards_is_refused_as_replicas() -> None:
    def work(wire: Wire) -> str:
        model = network()
        fully_shard(model, mesh=(mesh := init_device_mesh("cpu", (2,))))
        try:
            sage.fsdp_hook(model, "exact", replicate=mesh.get_group())
        except ValueError as error:
            return str(error)
        return ""

    for result in processes(2, work):
        assert "ranks [0, 1] have different shards of the model, so they are not replicas" in result
