"""Tests of mounts under `torch.amp.GradScaler`: a loss scale changes nothing that they keep or return."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from gloo import processes
from mounted import SEVERAL, Plain, Script, Wrapped, alone, loss, network, same
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import sage
from sage.comm.wire import Wire
from sage.mount.loss_scale import watch
from sage.mount.state import State
from sage.mount.whole import ModelMount
from sage.reducers.onebit import OneBit
from sage.testing.harness import same_bits

METHODS: dict[str, dict[str, Any]] = {
    "residual": {"reducer": "topk", "density": 0.1},
    "momentum": {"reducer": "topk", "density": 0.1, "memory": "momentum"},
    "estimates": {"reducer": "topk", "density": 0.1, "memory": "ef21"},
    "a given threshold": {"reducer": "threshold", "threshold": 0.01},
    "a server's error": {"reducer": lambda: OneBit(exchange="dist-ef")},
}
STEPS = range(4)
OVERFLOWS = 2
"""The step that overflows once on the last rank, and is then repeated."""


def scaler() -> GradScaler:
    """A scaler that doubles its scale at every step that does not overflow."""
    return GradScaler("cpu", init_scale=4.0, growth_interval=1)


def step(script: Script, number: int, scaler: GradScaler | None, *, overflows: bool = False) -> None:
    script.optimizer.zero_grad()
    each = loss(script.ddp if isinstance(script, Wrapped) else script.model, script.rank, number)
    if overflows and script.rank == 1:
        each = each * torch.inf
    (each if scaler is None else scaler.scale(each)).backward()
    if isinstance(script, Plain):
        script.mount.reduce()
    if scaler is None:
        script.optimizer.step()
    else:
        scaler.step(script.optimizer)
        scaler.update()


def trained(script: Script, scaler: GradScaler | None) -> tuple[list[Tensor], State, int, list[float]]:
    """Parameters, state, bytes of the last step, and the scale of each step; with a scaler, one overflows."""
    scales = []
    for number in STEPS:
        for overflows in [True, False] if scaler is not None and number == OVERFLOWS else [False]:
            scales.append(1.0 if scaler is None else scaler.get_scale())
            step(script, number, scaler, overflows=overflows)
    state, payload = script.mount.state_dict(), script.mount.last_step.payload_bytes
    return script.train([]), state, payload, scales


def is_same(ours: State, theirs: State) -> bool:
    return ours.keys() == theirs.keys() and all(
        same_bits(ours[name][key], theirs[name][key]) for name in ours for key in ours[name]
    )


MOUNTS: dict[str, Callable[[int, dict[str, Any]], Script]] = {
    "whole": lambda rank, options: Plain(network(), rank, **options),
    "ddp": lambda rank, options: Wrapped(network(), rank, ddp={"bucket_cap_mb": SEVERAL}, **options),
    "ddp, static graph": lambda rank, options: Wrapped(
        network(), rank, ddp={"static_graph": True}, **options
    ),
}


def agree(rank: int, mount: str, method: str) -> tuple[bool, bool, bool]:
    """Whether training with and without a scaler has the same parameters, state and bytes, to the bit."""
    options = METHODS[method]
    plain, plain_state, plain_bytes, _ = trained(MOUNTS[mount](rank, options), None)
    ours, state, payload, scales = trained(MOUNTS[mount](rank, options), scaler())
    assert scales == [4.0, 8.0, 16.0, 8.0, 16.0]
    return same(plain, ours), is_same(plain_state, state), plain_bytes == payload


class Pair:
    """A script that registers `sage.comm_hook`'s pair, which mounts the reducer in the first backward."""

    def __init__(self, rank: int) -> None:
        self.rank, self.ddp = rank, DistributedDataParallel(network())
        self.state, hook = sage.comm_hook(None, "topk", density=0.1)
        self.ddp.register_comm_hook(self.state, hook)

    def gradients(self, scaler: GradScaler | None) -> list[Tensor]:
        """The gradients after two steps, divided by the scale; it doubles in between."""
        for number in range(2):
            self.ddp.zero_grad()
            each = loss(self.ddp, self.rank, number)
            (each if scaler is None else scaler.scale(each)).backward()
            if scaler is not None and number == 0:
                scaler.update(2 * scaler.get_scale())
        self.state.mount.close()
        factor = 1.0 if scaler is None else scaler.get_scale()
        return [p.grad / factor for p in self.ddp.parameters() if p.grad is not None]


class Recomputed(nn.Module):
    """Recomputes its hidden layer in backward, by default in a backward within the backward."""

    def __init__(self, *, use_reentrant: bool = True) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x_BI: Tensor) -> Tensor:
        return self.last(checkpoint(self.first, x_BI.requires_grad_(), use_reentrant=self.use_reentrant))


def gradients(
    model: nn.Module, mount: Any, factors: list[float], multiply: Callable[[Tensor, float], Tensor]
) -> list[Tensor]:
    """The gradients of the last of several steps, divided by its factor."""
    for number, factor in enumerate(factors):
        model.zero_grad()
        x_BI = torch.randn(4, 8, generator=torch.Generator().manual_seed(number))
        multiply(model(x_BI).square().mean(), factor).backward()
        if isinstance(mount, ModelMount):
            mount.reduce()
    found = []
    for p in model.parameters():
        assert p.grad is not None
        found.append((p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad) / factors[-1])
    return [x.clone() for x in found]


def by_scaler() -> Callable[[Tensor, float], Tensor]:
    scaler = GradScaler("cpu", init_scale=1.0)

    def multiply(loss: Tensor, factor: float) -> Tensor:
        scaler.scale(loss)  # creates the scale
        scaler.update(factor)
        (scaled,) = scaler.scale([loss])
        assert isinstance(scaled, Tensor)
        return scaled

    return multiply


ONES, CHANGING = [1.0, 1.0, 1.0], [4.0, 8.0, 2.0]


def recomputed(rank: int, *, use_reentrant: bool) -> bool:
    found = []
    for factors in (ONES, CHANGING):
        model = Recomputed(use_reentrant=use_reentrant)
        mount = sage.reduce_model(model, "topk", density=0.1)
        found.append(gradients(model, mount, factors, by_scaler()))
        mount.close()
    return same(*found)


def by_hand(rank: int) -> bool:
    """A script that scales the loss itself and states the scale."""
    found = []
    for factors in (ONES, CHANGING):
        model = Recomputed()
        mount = sage.reduce_model(model, "topk", density=0.1)

        def multiply(loss: Tensor, factor: float, mount: Any = mount) -> Tensor:
            mount.begin_step(loss_scale=factor)
            return loss * factor

        found.append(gradients(model, mount, factors, multiply))
        mount.close()
    return same(*found)


def beside_another(rank: int) -> bool:
    """A model whose loss is not scaled, while another's is."""
    found = []
    for factors in (ONES, CHANGING):
        other, model = Recomputed(), Recomputed()
        mounts = [sage.reduce_model(each, "topk", density=0.1) for each in (other, model)]
        scaled = by_scaler()
        for factor in factors:
            gradients(other, mounts[0], [factor], scaled)
            gradients(model, mounts[1], [1.0], lambda loss, factor: loss)
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for mount in mounts:
            mount.close()
    return same(*found)


def sharded(rank: int) -> bool:
    """`fsdp_hook` between two replicas."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    found = []
    for factors in (ONES, CHANGING):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        for layer in (model[0], model):
            fully_shard(layer, mesh=mesh["shard"])
        mount = sage.fsdp_hook(model, "topk", density=0.1, replicate=mesh["replicate"])
        found.append(gradients(model, mount, factors, by_scaler()))
        mount.close()
    return same(*found)


def compressed_shards(rank: int) -> bool:
    """`shard_comm` with errors, between two shards."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    found = []
    for factors in (ONES, CHANGING):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        fully_shard(model, mesh=mesh["shard"])
        comm = sage.shard_comm(model, reduce_scatter="loco")
        found.append(gradients(model, comm, factors, by_scaler()))
        comm.close()
    return same(*found)


OTHERS: dict[str, Callable[[int], bool]] = {
    # First, because nothing has been mounted in these processes yet.
    "a pair, mounted in the first backward": lambda rank: same(
        Pair(rank).gradients(GradScaler("cpu", init_scale=4.0)), Pair(rank).gradients(None)
    ),
    "recomputed activations": partial(recomputed, use_reentrant=False),
    "a backward within a backward": partial(recomputed, use_reentrant=True),
    "a scale that the script states": by_hand,
    "beside a model with a scaler": beside_another,
    "shards": sharded,
    "compressed shards": compressed_shards,
}


@cache
def seen() -> list[dict[str, Any]]:
    """The results of two ranks, which start once."""

    def work(wire: Wire) -> dict[str, Any]:
        found: dict[str, Any] = {name: look(wire.rank) for name, look in OTHERS.items()}
        for mount in MOUNTS:
            for method in METHODS:
                found[f"{mount} {method}"] = agree(wire.rank, mount, method)
        return found

    return processes(2, work)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mount", MOUNTS)
def test_a_scale_that_changes_and_a_skipped_step_change_nothing(mount: str, method: str) -> None:
    for view in seen():
        assert view[f"{mount} {method}"] == (True, True, True)


@pytest.mark.parametrize("name", OTHERS)
def test_gradients_are_those_without_a_scale(name: str) -> None:
    assert all(view[name] for view in seen())


@alone
def test_gradients_that_are_unscaled_before_they_are_reduced_are_refused() -> None:
    script, scale = Plain(network(), 0, "topk"), scaler()
    scale.scale(loss(script.model, 0, 0)).backward()
    scale.unscale_(script.optimizer)
    script.mount.reduce()
    with pytest.raises(ValueError, match=r"divided by the loss scale before they were reduced, so that"):
        scale.step(script.optimizer)
    script.mount.close()


@alone
def test_fp16_gradients_and_wrong_scales_are_refused() -> None:
    model = nn.Linear(4, 2).half()
    mount = sage.reduce_model(model, "topk")
    scaler().scale(model(torch.ones(1, 4).half()).sum()).backward()
    with pytest.raises(ValueError, match=r"are torch.float16 under a loss scale of 4, and a mount divides"):
        mount.reduce()
    with pytest.raises(ValueError, match="the loss scale is 0: expected a finite number above 0"):
        mount.begin_step(loss_scale=0)
    mount.close()


def test_scalers_that_are_defined_or_imported_after_a_mount_are_noted_too() -> None:
    watch()

    class Doubling(GradScaler):
        def scale(self, outputs: Any) -> Any:
            return outputs * 2

    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    assert all(hasattr(each.scale, "_sage_notes") for each in (GradScaler, Doubling, ShardedGradScaler))
