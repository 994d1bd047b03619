"""Tests of models with empty, scalar and complex parameters, with every reducer through every mount."""
# B = batch

import copy
from functools import cache
from typing import Any

import pytest
import torch
from gloo import processes
from mounted import alone
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sage
from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.mount import WholeModel
from sage.mount.whole import ModelMount

NAMES = registry.names("reducers")
HYBRIDS = ["topk+terngrad", "adacomp+efsign"]


class Odd(nn.Module):
    """Parameters of these shapes and dtypes, with a given gradient."""

    def __init__(self, *kinds: tuple[tuple[int, ...], torch.dtype]) -> None:
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in kinds)

    def forward(self, gradients: list[Tensor]) -> Tensor:
        loss = torch.zeros(())
        for p, gradient in zip(self.parts, gradients, strict=True):
            # The gradient of re(conj(g)·p) with respect to p is g.
            product = (gradient.conj() * p).real if p.is_complex() else gradient * p
            loss = loss + product.sum().float()
        return loss

    def gradients(self, rank: int, step: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(100 * step + rank)
        return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in self.parts]


EMPTY = [((0, 4), torch.float32), ((0,), torch.float32), ((3, 0), torch.float32), ((3,), torch.float32)]
MODELS: dict[str, list[tuple[tuple[int, ...], torch.dtype]]] = {
    "empty layers": EMPTY,
    "empty at the ends": [((0,), torch.float32), ((4, 3), torch.float32), ((0, 2), torch.float32)],
    "empty alone": [((0, 4), torch.float32), ((2, 0), torch.float32)],
    "scalars": [((), torch.float32), ((5, 2), torch.float32), ((), torch.float32)],
    "a scalar alone": [((), torch.float32)],
    "complex": [
        ((3,), torch.float32),
        ((4, 3), torch.complex64),
        ((), torch.complex64),
        ((2,), torch.float32),
    ],
}


def steps(model: Odd, mount: ModelMount, numbers: range, rank: int) -> list[Tensor]:
    for step in numbers:
        mount.zero_grad()
        model(model.gradients(rank, step)).backward()
        mount.reduce()
    return [p.grad.clone() for p in model.parts if p.grad is not None]


def through_whole(wire: Wire, name: str, kinds: Any, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients after three steps, without interruption and with one after the second."""
    models = [Odd(*kinds) for _ in range(3)]
    mounts = [
        ModelMount(model, WholeModel(model, registry.load("reducers", name)(), **options), wire)
        for model in models
    ]
    whole, first, second = zip(models, mounts, strict=True)
    straight = steps(*whole, range(3), wire.rank)
    steps(*first, range(2), wire.rank)
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()))
    return straight, steps(*second, range(2, 3), wire.rank)


@pytest.mark.parametrize("kinds", MODELS)
@pytest.mark.parametrize("name", [*NAMES, *HYBRIDS])
def test_unusual_tensors_are_reduced_saved_and_loaded(name: str, kinds: str) -> None:
    ranks = simulate(2, lambda wire: through_whole(wire, name, MODELS[kinds]))
    for straight, resumed in ranks:
        for a, b, c in zip(straight, resumed, ranks[0][0], strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


@pytest.mark.parametrize("grouping", ["model", "layer", "bucket:0.00002"])
@pytest.mark.parametrize("name", ["topk", "accordion", "sidco", "accordion_powersgd"])
def test_the_state_of_empty_groups_can_be_loaded(name: str, grouping: str) -> None:
    for straight, resumed in simulate(1, lambda wire: through_whole(wire, name, EMPTY, grouping=grouping)):
        assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


@cache
def through_ddp() -> list[dict[str, bool]]:
    """For each model and reducer, whether DDP's hook and the plain loop give the same."""

    def both(rank: int, name: str, kinds: Any) -> bool:
        own = Odd(*kinds)
        whole = sage.reduce_model(own, name, grouping="layer")
        wrapped = DistributedDataParallel(Odd(*kinds))
        hook = sage.ddp_hook(wrapped, name, grouping="layer")
        same = True
        for step in range(3):
            steps(own, whole, range(step, step + 1), rank)
            wrapped.zero_grad()
            wrapped(own.gradients(rank, step)).backward()
            for p, q in zip(own.parts, wrapped.module.parts, strict=True):
                same = same and torch.allclose(p.grad, q.grad, rtol=1e-5, atol=1e-6)
        hook.load_state_dict(copy.deepcopy(hook.state_dict()))
        whole.close()
        hook.close()
        return same

    def work(wire: Wire) -> dict[str, bool]:
        found = {}
        for kinds in ("empty layers", "scalars"):
            for name in [*NAMES, *HYBRIDS]:
                found[f"{kinds} {name}"] = both(wire.rank, name, MODELS[kinds])
        for name in ("exact", "bf16", "fp16", "topk", "accordion", "efsignsgd"):
            found[f"complex {name}"] = both(wire.rank, name, MODELS["complex"])
        return found

    return processes(2, work)


@pytest.mark.parametrize("kinds", ["empty layers", "scalars"])
@pytest.mark.parametrize("name", [*NAMES, *HYBRIDS])
def test_for_unusual_tensors_ddp_hook_gives_the_same_as_the_whole_model_mount(name: str, kinds: str) -> None:
    assert all(view[f"{kinds} {name}"] for view in through_ddp())


@pytest.mark.parametrize("name", ["exact", "bf16", "fp16", "topk", "accordion", "efsignsgd"])
def test_complex_gradients_are_the_same_with_both_mounts(name: str) -> None:
    assert all(view[f"complex {name}"] for view in through_ddp())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("name", ["exact", "fp16"])
def test_both_parts_of_a_complex_gradient_are_averaged(name: str, dtype: torch.dtype) -> None:
    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        model = Odd(((3,), torch.view_as_real(torch.zeros(1, dtype=dtype)).dtype), ((2, 3), dtype))
        whole = WholeModel(model, registry.load("reducers", name)(), min_compress=100)
        seen = steps(model, ModelMount(model, whole, wire), range(1), wire.rank)
        pairs = zip(model.gradients(0, 0), model.gradients(1, 0), strict=True)
        return seen, [torch.stack(pair).mean(0) for pair in pairs]

    for seen, expected in simulate(2, work):
        for ours, theirs in zip(seen, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3, check_dtype=False)
        assert seen[1].dtype == dtype
        assert bool((seen[1].imag != 0).all())


@alone
def test_complex_parameters_are_refused_on_shards() -> None:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard"))
    model = Odd(*MODELS["complex"][:2])
    fully_shard(model, mesh=mesh["shard"])
    with pytest.raises(
        ValueError, match=r"'parts.1' is torch.complex64: fsdp_hook supports only real dtypes"
    ):
        sage.fsdp_hook(model, "exact", replicate=mesh["replicate"])


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        sage.reduce_model(nn.ReLU(), "exact")
