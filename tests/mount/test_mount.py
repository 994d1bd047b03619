"""Tests of the whole model's gradient as one vector, and of its reduction against DistributedDataParallel."""
# N = elements of the flat gradient, B = batch

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gloo import processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.mount import WholeModel
from sage.reducers.exact import Exact
from sage.reducers.topk import TopK


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)
    )


def loss(model: nn.Module, rank: int, step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    x_BCHW = torch.randn(6, 1, 8, 8, generator=generator)
    return F.cross_entropy(model(x_BCHW), torch.randint(10, (6,), generator=generator))


def gradient(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def own_gradient(rank: int) -> dict[str, Tensor]:
    """One rank's gradient, by autograd only."""
    model = network()
    loss(model, rank).backward()
    return gradient(model)


def reduced(world_size: int, make: Callable[[], Any], **mount: Any) -> list[dict[str, Tensor]]:
    """Every rank's `.grad`s after one backward and one reduction."""

    def work(wire: Wire) -> dict[str, Tensor]:
        model = network()
        whole = WholeModel(model, make(), **mount)
        whole.zero_()
        loss(model, wire.rank).backward()
        whole(wire)
        return gradient(model)

    return simulate(world_size, work)


def test_exact_gives_every_rank_the_mean_of_all_gradients() -> None:
    own = [own_gradient(rank) for rank in range(3)]
    for grads in reduced(3, Exact):
        assert list(grads) == list(own[0])
        for name, grad in grads.items():
            torch.testing.assert_close(grad, torch.stack([o[name] for o in own]).mean(0))


def test_exact_agrees_with_distributed_data_parallel_step_by_step() -> None:
    def work(wire: Wire) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        ours, theirs = network(), network()
        whole, ddp = WholeModel(ours, Exact()), DistributedDataParallel(theirs)
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (ours, theirs)]
        seen = []
        for step in range(3):
            whole.zero_()
            theirs.zero_grad()
            loss(ours, wire.rank, step).backward()
            whole(wire)
            loss(ddp, wire.rank, step).backward()
            seen.append((gradient(ours), gradient(theirs)))
            for optimizer in optimizers:
                optimizer.step()
        return seen

    for seen in processes(2, work):
        for ours, theirs in seen:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", registry.names("reducers"))
def test_every_reducer_leaves_the_same_gradients_on_every_rank(name: str) -> None:
    first, *others = reduced(3, registry.load("reducers", name), min_compress=20)
    assert any(bool(grad.any()) for grad in first.values())
    for grads in others:
        assert all(torch.equal(grads[parameter], grad) for parameter, grad in first.items())


def test_gradients_are_views_of_one_vector_before_and_after() -> None:
    model = network()
    whole = WholeModel(model, TopK(density=0.1), min_compress=20)
    places = [p.grad.data_ptr() for p in whole.parameters_in_order if p.grad is not None]
    for step in range(2):
        whole.zero_()
        loss(model, 0, step).backward()
        simulate(1, whole)
        assert [p.grad.data_ptr() for p in whole.parameters_in_order if p.grad is not None] == places
    flat = torch.cat([p.grad.view(-1) for p in whole.parameters_in_order if p.grad is not None])
    assert torch.equal(flat, whole.grad_N)
    assert places[0] == whole.grad_N.data_ptr()
    whole.zero_()
    assert not any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)


def test_backward_accumulates_over_micro_batches() -> None:
    model = network()
    whole = WholeModel(model, Exact())
    for rank in range(2):
        loss(model, rank).backward()
    own = [own_gradient(rank) for rank in range(2)]
    for name, grad in gradient(model).items():
        torch.testing.assert_close(grad, own[0][name] + own[1][name])
    assert whole.grad_N.any()


# Small tensors.


def test_small_tensors_are_sent_dense_from_the_end_of_the_vector() -> None:
    model = network()
    whole = WholeModel(model, TopK(density=0.01), min_compress=20)
    assert [span.name for span in whole.layout.spans] == [
        *("0.weight", "4.weight"),
        *("0.bias", "1.weight", "1.bias", "4.bias"),
    ]
    assert whole.grad_C.numel() == 36 + 1440
    assert whole.dense.numel() == 4 + 4 + 4 + 10
    own = [own_gradient(rank) for rank in range(2)]
    for grads in reduced(2, lambda: TopK(density=0.01), min_compress=20):
        for name in ("0.bias", "1.weight", "1.bias", "4.bias"):
            torch.testing.assert_close(grads[name], (own[0][name] + own[1][name]) / 2)
        assert int((grads["4.weight"] != 0).sum()) <= 2 * 14


def test_a_tensor_of_exactly_the_minimum_size_is_compressed() -> None:
    assert WholeModel(network(), TopK(), min_compress=36).dense.numel() == 22
    assert WholeModel(network(), TopK(), min_compress=37).dense.numel() == 36 + 22


def test_if_all_tensors_are_small_everything_is_sent_dense() -> None:
    own = [own_gradient(rank) for rank in range(2)]
    makes = [registry.load("reducers", name) for name in registry.names("reducers")]
    # Low-rank reducers also take small tensors, and send those dense that would not shrink.
    for make in [make for make in makes if make.spares_small or not make.rounds]:  # type: ignore[attr-defined]
        for grads in reduced(2, make, min_compress=10**6):
            for parameter, grad in grads.items():
                mean = (own[0][parameter] + own[1][parameter]) / 2
                torch.testing.assert_close(grad, mean, atol=1e-2, rtol=1e-2)


def test_the_dense_reducers_also_reduce_small_tensors() -> None:
    for name in ("exact", "bf16", "fp16"):
        whole = WholeModel(network(), registry.load("reducers", name)(), min_compress=1000)
        assert whole.dense.numel() == 0


# Unusual parameters.


def test_frozen_parameters_are_not_in_the_vector_and_have_no_gradient() -> None:
    model = network()
    model[0].requires_grad_(False)
    whole = WholeModel(model, Exact())
    assert [span.name for span in whole.layout.spans] == ["1.weight", "1.bias", "4.weight", "4.bias"]
    loss(model, 0).backward()
    simulate(1, whole)
    assert model[0].weight.grad is None


def test_a_model_without_trainable_parameters_is_refused() -> None:
    model = network().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        WholeModel(model, Exact())


class UsesOneLayer(nn.Module):
    """Uses one of two layers, depending on the rank; a third shares the first one's weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.tied = (nn.Linear(3, 3, bias=False) for _ in range(3))
        self.tied.weight = self.first.weight

    def forward(self, x_B: Tensor, rank: int) -> Tensor:
        return self.tied(self.first(x_B)) if rank == 0 else self.second(x_B)


def test_unused_parameters_contribute_zeros_and_tied_ones_are_counted_once() -> None:
    x_B = torch.ones(2, 3)

    def work(wire: Wire) -> tuple[list[str], dict[str, Tensor]]:
        model = UsesOneLayer()
        whole = WholeModel(model, Exact())
        model(x_B, wire.rank).sum().backward()
        whole(wire)
        return [span.name for span in whole.layout.spans], gradient(model)

    model = UsesOneLayer()
    (model(x_B, 0).sum() + model(x_B, 1).sum()).backward()
    half = {name: grad / 2 for name, grad in gradient(model).items()}
    for names, grads in simulate(2, work):
        assert names == ["first.weight", "second.weight"]
        torch.testing.assert_close(grads, half)


# Error feedback.


def test_unsent_elements_are_kept_only_with_error_feedback() -> None:
    def work(wire: Wire, memory: Any) -> list[list[float]]:
        layer = nn.Linear(2, 1, bias=False)
        whole = WholeModel(layer, TopK(density=0.5), memory=memory)
        sent = []
        for _ in range(3):
            whole.zero_()
            (layer.weight * torch.tensor([[1.0, 0.6]])).sum().backward()
            whole(wire)
            sent.append(whole.grad_N.tolist())
        return sent

    assert simulate(1, partial(work, memory="none")) == [[[1.0, 0.0]] * 3]
    (residual,) = simulate(1, partial(work, memory="residual"))
    assert simulate(1, partial(work, memory=None)) == [residual]
    assert residual[0] == [1.0, 0.0]
    assert residual[1] == [0.0, pytest.approx(1.2)]
    assert residual[2] == [2.0, 0.0]


def test_the_residual_covers_only_the_compressed_elements_and_is_in_the_state() -> None:
    whole = WholeModel(network(), TopK(), min_compress=20)
    assert whole.feedback.state_dict()["residual_N"].shape == whole.grad_C.shape
    assert "residual_N" not in WholeModel(network(), TopK(), memory="none").feedback.state_dict()
    assert "residual_N" not in WholeModel(network(), Exact()).feedback.state_dict()


def test_the_users_grouping_overrides_the_reducers() -> None:
    assert len(WholeModel(network(), TopK(), min_compress=20).feedback.reducer.layout.groups) == 2
    whole = WholeModel(network(), TopK(), min_compress=20, grouping="model")
    assert whole.feedback.reducer.layout.groups == ((0, 1476),)
    with pytest.raises(ValueError, match=r"grouping 'rows': expected model, layer, or bucket:<MB>"):
        WholeModel(network(), TopK(), grouping="rows")


@pytest.mark.parametrize("name", registry.names("reducers"))
@pytest.mark.parametrize("memory", ["none", "residual"])
def test_a_model_in_bf16_is_reduced_as_well(name: str, memory: Any) -> None:
    make = registry.load("reducers", name)
    # Enough for a random selection to include a nonzero element: most of this gradient is 0.
    options = {"density": 0.5} if "density" in registry.options(make) else {}

    def work(wire: Wire) -> Tensor:
        model = network().bfloat16()
        whole = WholeModel(model, make(**options), memory=memory)
        x_BCHW = torch.ones(2, 1, 8, 8, dtype=torch.bfloat16)
        (1000 * model(x_BCHW).square().mean()).backward()  # large enough for any threshold
        whole(wire)
        return whole.grad_N.clone()

    first, second = simulate(2, work)
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, second)
    assert bool(first.any())
