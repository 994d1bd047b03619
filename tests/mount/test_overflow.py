"""Tests that a step with an overflow changes no state, with every reducer and memory through every mount."""
# N = elements of the flat gradient

import copy
from functools import cache, partial
from typing import Any, get_args

import pytest
import torch
from gloo import processes
from mounted import SEVERAL, Plain, Wrapped, alone, network
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import sage
from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.mount import WholeModel
from sage.mount.state import State
from sage.mount.step import is_finite
from sage.mount.whole import ModelMount
from sage.reducers.exact import Exact
from sage.reduction.estimators import ESTIMATING
from sage.reduction.reducer import Memory, Reduced
from sage.testing.harness import same_bits

NAMES = registry.names("reducers")
MEMORIES = get_args(Memory)
ESTIMATED = ["topk", "qsgd", "powersgd", "sage"]
"""The reducers that are tested with estimates too."""
HYBRIDS = ["topk+terngrad", "adacomp+efsign"]


def gradient(model: nn.Module, rank: int, step: int, spike: float = 0.0) -> None:
    """Add this step's gradient of this rank; one of its elements is increased by the spike."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    loss = torch.zeros(())
    for p in model.parameters():
        loss = loss + (p * torch.randn(p.shape, generator=generator)).sum()
    first = next(model.parameters()).view(-1)[3]
    (loss + first * spike if spike else loss).backward()


def is_same(ours: State, theirs: State) -> bool:
    return ours.keys() == theirs.keys() and all(
        same_bits(ours[name][key], theirs[name][key]) for name in ours for key in ours[name]
    )


def all_finite(held: State) -> bool:
    """Whether all state is finite, except initial values (`sidco`: a last density of infinity)."""
    return all(
        bool(x.isfinite().all())
        for each in held.values()
        for key, x in each.items()
        if key != "reducer.last_G"
    )


def plain(wire: Wire, name: str, memory: Any, spikes: dict[int, float], **options: Any) -> Any:
    """The state after steps 0, 1 and 2; a step with a spike on the last rank is repeated without it."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2, bias=False))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    whole = WholeModel(model, registry.load("reducers", name)(**options), memory=memory)
    mount = ModelMount(model, whole, wire)
    for step in range(3):
        for spike in [spikes[step], 0.0] if step in spikes else [0.0]:
            before = copy.deepcopy(mount.state_dict())
            mount.begin_step(0.1 / (1 + step))
            mount.zero_grad()
            gradient(model, wire.rank, step, spike if wire.rank == wire.world_size - 1 else 0.0)
            mount.reduce()
            if spike:
                assert all(p.grad is not None and bool(p.grad.isnan().all()) for p in model.parameters())
                assert is_same(before, mount.state_dict())
    assert mount.total.skipped == len(spikes)
    assert all_finite(mount.state_dict())
    return whole.grad_N.clone(), mount.state_dict()


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        (name, memory)
        for name in [*NAMES, *HYBRIDS]
        for memory in MEMORIES
        if name in ESTIMATED or memory not in ESTIMATING
    ],
)
def test_a_run_continues_after_a_skipped_step_as_if_the_step_did_not_exist(name: str, memory: Memory) -> None:
    options: dict[str, Any] = {}
    if name == "variance":
        options = {"values": "fp32"}
    spiked, straight = (
        simulate(2, partial(plain, name=name, memory=memory, spikes=spikes, **options))
        for spikes in ({1: float("inf"), 2: float("nan")}, {})
    )
    for (ours_N, ours), (theirs_N, theirs) in zip(spiked, straight, strict=True):
        assert same_bits(ours_N, theirs_N)
        assert is_same(ours, theirs)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_value_that_overflows_only_on_the_wire_changes_no_state(memory: Memory) -> None:
    spiked, straight = (
        simulate(2, partial(plain, name="fp16", memory=memory, spikes=spikes)) for spikes in ({1: 1e7}, {})
    )
    for (_, ours), (_, theirs) in zip(spiked, straight, strict=True):
        assert is_same(ours, theirs)


def test_squares_of_a_skipped_step_are_not_observed() -> None:
    def work(wire: Wire) -> tuple[State, State]:
        model = nn.Linear(2, 1, bias=False)
        mount = ModelMount(model, WholeModel(model, registry.load("reducers", "variance")()), wire)
        before = copy.deepcopy(mount.state_dict())
        model(torch.ones(1, 2)).sum().backward()
        mount.observe({"weight": torch.full((1, 2), torch.inf if wire.rank else 1.0)})
        mount.reduce()
        return before, mount.state_dict()

    for before, after in simulate(2, work):
        assert is_same(before, after)


def train(script: Any, scaler: Any, spike: bool) -> None:
    """One step with a scaler; on the last rank with a loss that overflows in single precision."""
    script.optimizer.zero_grad()
    model = script.ddp if isinstance(script, Wrapped) else script.model
    x_BCHW = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(script.rank))
    loss = model(x_BCHW).square().mean()
    if spike and script.rank == 1:
        loss = loss * 1e38
    scaler.scale(loss).backward()
    if isinstance(script, Plain):
        script.mount.reduce()
    scaler.step(script.optimizer)
    scaler.update()


@cache
def scaled() -> list[dict[str, Any]]:
    """For each reducer and mount, the scales after each of four steps, and whether all are equal."""

    def work(wire: Wire) -> dict[str, Any]:
        seen = {}
        for name in [*NAMES, *HYBRIDS]:
            scripts = {
                "whole": Plain(network(), wire.rank, name, memory="momentum"),
                "ddp": Wrapped(network(), wire.rank, name, memory="momentum", ddp={"bucket_cap_mb": SEVERAL}),
            }
            for mount, script in scripts.items():
                scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
                scales, same = [], True
                for step in range(4):
                    before = copy.deepcopy([script.mount.state_dict(), script.model.state_dict()])
                    train(script, scaler, spike=step == 1)
                    scales.append(scaler.get_scale())
                    if step == 1:
                        same = is_same(before[0], script.mount.state_dict()) and all(
                            same_bits(p, before[1][key]) for key, p in script.model.named_parameters()
                        )
                finite = all_finite(script.mount.state_dict())
                seen[f"{mount} {name}"] = scales, same, finite, script.mount.total.skipped
                script.mount.close()
        return seen

    return processes(2, work)


@pytest.mark.parametrize("mount", ["whole", "ddp"])
@pytest.mark.parametrize("name", [*NAMES, *HYBRIDS])
def test_a_grad_scaler_halves_once_on_all_ranks(name: str, mount: str) -> None:
    for view in scaled():
        scales, same, finite, skipped = view[f"{mount} {name}"]
        assert scales == [256.0, 128.0, 128.0, 128.0]
        assert same
        assert finite
        assert skipped == 1


def test_an_overflow_in_one_shard_changes_the_state_of_no_shard() -> None:
    def work(wire: Wire) -> bool:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        for layer in (*model, model):
            fully_shard(layer, mesh=mesh["shard"])
        mount = sage.fsdp_hook(model, "topk", density=0.5, memory="momentum", replicate=mesh["replicate"])
        x_B = torch.ones(2, 4)
        model(x_B).sum().backward()
        before = copy.deepcopy(mount.state_dict())
        model.zero_grad()
        out_B = model(x_B)
        # The rows of the last layer's gradient are the outputs: of two ranks' shards one overflows.
        (out_B * torch.tensor([torch.inf, 1, 1, 1]) if wire.rank == 3 else out_B).sum().backward()
        unharmed = is_same(before, mount.state_dict())
        grads = [p.grad for p in model.parameters()]
        all_nan = all(isinstance(g, DTensor) and bool(g.to_local().isnan().all()) for g in grads)
        mount.close()
        return unharmed and all_nan and mount.total.skipped == 1

    assert all(processes(4, work))


@alone
def test_without_a_scaler_the_gradient_shows_that_it_is_not_finite() -> None:
    script = Wrapped(network(), 0, "topk")
    gradient(script.ddp.module, 0, 0)  # not through the wrapper, only to create gradients
    script.optimizer.zero_grad()
    (script.ddp(torch.ones(1, 1, 8, 8)).sum() * torch.inf).backward()
    assert all(p.grad is not None and bool(p.grad.isnan().all()) for p in script.model.parameters())
    assert script.mount.last_step.skipped == 1
    script.mount.close()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_finite_elements_are_distinguished_from_infinite_ones(dtype: torch.dtype) -> None:
    large_N = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(large_N)
    assert is_finite(Tensor())
    for value in (torch.inf, -torch.inf, torch.nan):
        large_N[7] = value
        assert not is_finite(large_N)


class Divides(Exact):
    """Divides by the largest element, as a third-party reducer may."""

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        return super().forward(grad_N.div_(grad_N.abs().max()), residual_N, wire)


def copies(monkeypatch: pytest.MonkeyPatch, name: str, scale: float, world_size: int = 2) -> list[int]:
    """How often each rank copies the state in three steps; only the last rank's gradient is scaled."""

    def work(wire: Wire) -> int:
        made = 0
        model = nn.Linear(6, 5)
        mount = ModelMount(model, WholeModel(model, registry.load("reducers", name)()), wire)
        save = mount._whole.save

        def counted() -> dict[str, Tensor]:
            nonlocal made
            made += 1
            return save()

        monkeypatch.setattr(mount._whole, "save", counted)
        for step in range(3):
            mount.zero_grad()
            gradient(model, wire.rank, step)
            if wire.rank == wire.world_size - 1:
                for p in model.parameters():
                    assert p.grad is not None
                    p.grad.mul_(scale)
            mount.reduce()
        return made

    return simulate(world_size, work)


@pytest.mark.parametrize("name", ["topk", "fp16", "onebit", "powersgd"])
def test_state_is_copied_only_if_a_mean_can_overflow_and_then_on_all_ranks(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert copies(monkeypatch, name, 1.0) == [0, 0]
    assert copies(monkeypatch, name, 65536.0) == [3, 3]


def test_a_reducer_that_divides_by_zero_is_named() -> None:
    def work(wire: Wire) -> None:
        model = nn.Linear(6, 5)
        mount = ModelMount(model, WholeModel(model, Divides()), wire)
        with pytest.raises(ValueError, match="the reducer Divides returned a mean that is not finite"):
            mount.reduce()

    simulate(2, work)
