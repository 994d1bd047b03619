"""Tests that a reducer gives equal parameters through every mount, where that is an invariant."""
# W = world size

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import processes
from mounted import SEVERAL, Plain, Wrapped, loss, network, once, same
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import sage
from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.mount.flat import Flat
from sage.reduction.layout import Origin
from sage.reduction.reducer import Reducer

NAMES = registry.names("reducers")

OPTIONS: dict[str, dict[str, Any]] = {
    "threshold": {"threshold": 0.01},
    "acp": {"min_compression_rate": 0.5},
    "accordion_powersgd": {"rank_high": 1},  # so that these small matrices are factored
}
"""Options of reducers whose defaults depend on the size of the vector."""

Shapes = Sequence[tuple[str, tuple[int, ...]]]
SHAPES: Shapes = (("first", (30, 7)), ("second", (12,)), ("third", (40, 3)))


def make(name: str) -> Reducer:
    reducer: Reducer = registry.load("reducers", name)(**OPTIONS.get(name, {}))
    return reducer


def means(name: str, cut: Sequence[Shapes], grouping: str | None) -> list[Tensor]:
    """Three reductions of one gradient by W = 2 ranks, split into these flat vectors: each step's mean."""

    sizes = {shape_name: torch.Size(shape).numel() for part in cut for shape_name, shape in part}
    places = zip(sizes, accumulate(sizes.values(), initial=0), strict=False)
    origins = {shape_name: Origin(place, number) for number, (shape_name, place) in enumerate(places)}

    def work(wire: Wire) -> list[Tensor]:
        options: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu"), "origins": origins}
        flats = [Flat(part, make(name), grouping=grouping, **options) for part in cut]
        seen = []
        for step in range(3):
            generator = torch.Generator().manual_seed(10 * step + wire.rank)
            grad_N = torch.randn(sum(flat.layout.numel for flat in flats), generator=generator)
            for flat, piece in zip(flats, grad_N.split([f.layout.numel for f in flats]), strict=True):
                flat.grad_N.copy_(piece)
                flat(wire)
            seen.append(torch.cat([flat.grad_N for flat in flats]))
        return seen

    return simulate(2, work)[0]


@cache
def is_layerwise(name: str) -> bool:
    """Whether the method, grouped by layer, reduces each layer as if it were alone."""
    return close(means(name, [SHAPES], "layer"), means(name, [(shape,) for shape in SHAPES], "layer"))


@cache
def is_elementwise(name: str) -> bool:
    """Whether the method reduces each element as in any other vector."""
    cut = [(("rows", (15, 7)),), (("rest", (30 * 7 + 12 + 40 * 3 - 15 * 7,)),)]
    return close(means(name, [SHAPES], None), means(name, cut, None))


def close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether they are equal to float tolerance, because sums may be computed in another order."""
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


@cache
def with_two_ranks() -> dict[str, tuple[bool, bool]]:
    """For each reducer, whether the hook gives the whole model's parameters: with one bucket, and by layer.

    The ranks start once, because starting takes the most time.
    """

    def both(rank: int, name: str, grouping: str, **ddp: Any) -> tuple[list[Tensor], list[Tensor]]:
        own: dict[str, Any] = {"min_compress": 15, "grouping": grouping, **OPTIONS.get(name, {})}
        whole = Plain(network(), rank, name, **own).train()
        return whole, Wrapped(network(), rank, name, ddp=ddp, **own).train()

    def work(wire: Wire) -> dict[str, tuple[bool, bool]]:
        return {
            name: (
                same(*both(wire.rank, name, "model")),
                close(*both(wire.rank, name, "layer", bucket_cap_mb=SEVERAL)),
            )
            for name in NAMES
        }

    first, second = processes(2, work)
    return {name: (first[name][0] and second[name][0], first[name][1] and second[name][1]) for name in NAMES}


@cache
def on_shards() -> dict[str, float]:
    """For each elementwise reducer, the error of FSDP2 (2 replicas of 2 shards) to the whole-model mount."""

    def work(wire: Wire) -> dict[str, float]:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        return {name: on_mesh(name, mesh, wire.rank) for name in NAMES if is_elementwise(name)}

    def on_mesh(name: str, mesh: DeviceMesh, rank: int) -> float:
        shards = dist.get_process_group_ranks(mesh["shard"].get_group())
        own = OPTIONS.get(name, {})

        def of_all_shards(model: nn.Module, _: int, step: int) -> None:
            torch.stack([loss(model, shard, step) for shard in shards]).mean().backward()

        replicas = mesh["replicate"].get_group()
        whole = Plain(network(), rank, name, group=replicas, backward=of_all_shards, **own).train()
        model = network()
        for layer in (model[4], model[6], model):
            fully_shard(layer, mesh=mesh["shard"])
        mount = sage.fsdp_hook(model, name, replicate=mesh["replicate"], **own)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for step in range(4):
            optimizer.zero_grad()
            once(model, rank, step)
            optimizer.step()
        mount.close()
        sharded = [p.full_tensor().detach() for p in model.parameters() if isinstance(p, DTensor)]
        return max(float((a - b).abs().max()) for a, b in zip(whole, sharded, strict=True))

    return processes(4, work)[0]


@pytest.mark.parametrize("name", NAMES)
def test_with_one_bucket_the_hook_is_bitwise_equal_to_the_whole_model_mount(name: str) -> None:
    one_bucket, _ = with_two_ranks()[name]
    assert one_bucket


@pytest.mark.parametrize("name", NAMES)
def test_a_layerwise_method_gives_the_same_with_several_buckets(name: str) -> None:
    _, by_layer = with_two_ranks()[name]
    assert by_layer or not is_layerwise(name)


@pytest.mark.parametrize("name", NAMES)
def test_an_elementwise_method_gives_the_same_on_shards(name: str) -> None:
    # `sketch` is exact, and so by element, in vectors of no more than 256 elements.
    assert name == "sketch" or not is_elementwise(name) or on_shards()[name] < 1e-6


def test_layerwise_and_elementwise_methods_are_recognised() -> None:
    random = {"qsgd", "dithering", "terngrad", "natural", "randomk"}
    assert {name for name in NAMES if is_layerwise(name)} >= {"exact", "bf16", "topk", "accordion", *random}
    assert {name for name in NAMES if is_elementwise(name)} >= {"exact", "bf16", "threshold", "natural"}
    assert not is_layerwise("sage")
    assert not is_elementwise("topk")
