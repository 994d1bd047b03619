"""Tests of the optimisers against torch's own and plain code, and of the groups of parameters."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.train.learning_rate import set_lr
from sage.train.optimizers import build_optimizer
from sage.train.signum import Signum

has_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
KINDS = ["sgd", "adam", "adamw", pytest.param("muon", marks=has_muon), "signum"]


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2)
    )


def backward(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    model.zero_grad()
    model(torch.randint(5, (6, 2), generator=generator)).square().sum().backward()


def lstm(**options: Any) -> nn.Module:
    return registry.load("models", "lstm")(vocab_size=20, embedding=4, hidden=4, layers=2, **options)


def names(model: nn.Module, group: dict[str, Any]) -> set[str]:
    """The names of the parameters of a group."""
    return {name for name, p in model.named_parameters() if any(p is other for other in group["params"])}


def weights_after(steps: int, update: Callable[[Sequence[Tensor]], Callable[[], object]]) -> list[Tensor]:
    """The weights of the small model after steps of what `update` makes of its parameters."""
    model = small_model()
    step = update(list(model.parameters()))
    for number in range(steps):
        backward(model, number)
        step()
    return [p.detach() for p in model.parameters()]


# Groups.


def test_an_unknown_optimiser_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(
        ValueError, match="choose sgd, adam, adamw, muon, signum, onebit-adam, zeroone-adam, onebit-lamb"
    ):
        build_optimizer(small_model(), kind="lamb", lr=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay_norms", [False, True])
@pytest.mark.parametrize("decay_embeddings", [False, True])
def test_each_parameter_is_in_one_group_and_decays_by_the_rule(
    kind: str, decay_norms: bool, decay_embeddings: bool
) -> None:
    model = small_model()
    optimizer = build_optimizer(
        model,
        kind=kind,
        lr=0.1,
        weight_decay=0.5,
        decay_norms=decay_norms,
        decay_embeddings=decay_embeddings,
    )
    held = [(name, group) for group in optimizer.param_groups for name in sorted(names(model, group))]
    assert sorted(name for name, _ in held) == sorted(name for name, _ in model.named_parameters())
    for name, group in held:
        is_decayed = (
            decay_embeddings if name == "0.weight" else decay_norms or name in ("2.weight", "5.weight")
        )
        assert group["weight_decay"] == (0.5 if is_decayed else 0.0)
    set_lr(optimizer, 0.025)
    assert {group["lr"] for group in optimizer.param_groups} == {0.025}
    backward(model, 0)
    optimizer.step()


@has_muon
@pytest.mark.parametrize("tied", [False, True])
def test_muon_updates_the_hidden_matrices_of_a_language_model(tied: bool) -> None:
    model = lstm(tied=tied)
    optimizer = build_optimizer(model, kind="muon", lr=0.02, adamw_lr=0.01, weight_decay=0.1)
    of_muon = set().union(*(names(model, group) for group in optimizer.param_groups if "ns_steps" in group))
    assert of_muon == {f"lstm.weight_{kind}_l{layer}" for kind in ("ih", "hh") for layer in (0, 1)}
    set_lr(optimizer, 0.04)
    for group in optimizer.param_groups:
        assert group["lr"] == (0.04 if "ns_steps" in group else 0.02)


@has_muon
def test_patterns_replace_the_rule_that_the_last_linear_layer_is_the_head() -> None:
    model = lstm(tied=False)
    optimizer = build_optimizer(model, kind="muon", lr=0.02, adamw_names=["lstm.*_l0", "lstm.*_l1"])
    assert names(model, optimizer.param_groups[0]) == {"decoder.weight"}
    with pytest.raises(
        ValueError, match="'heads', which matches no parameter; the parameters are 'embedding"
    ):
        build_optimizer(model, kind="muon", lr=0.02, adamw_names=["heads"])


def test_muon_refuses_a_model_without_hidden_matrices() -> None:
    resnet = registry.load("models", "resnet")(depth=20, num_classes=10)
    with pytest.raises(ValueError, match="has no matrix .* use --optimizer adamw"):
        build_optimizer(resnet, kind="muon", lr=0.02)


def test_dion_updates_the_matrices_of_muon() -> None:
    def work(wire: Wire) -> None:
        model = lstm(tied=False)
        given: dict[str, Any] = {
            "kind": "dion",
            "lr": 0.02,
            "adamw_lr": 0.01,
            "weight_decay": 0.1,
            "wire": wire,
        }
        optimizer = build_optimizer(model, **given)
        of_dion = [names(model, group) for group in optimizer.param_groups if group["algorithm"] == "dion"]
        assert of_dion == [{f"lstm.weight_{kind}_l{layer}" for kind in ("ih", "hh") for layer in (0, 1)}]
        set_lr(optimizer, 0.04)
        for group in optimizer.param_groups:
            assert group["lr"] == (0.04 if group["algorithm"] == "dion" else 0.02)
        with pytest.raises(ValueError, match="optimizer is 'dion', but the model has no matrix"):
            build_optimizer(nn.Linear(2, 2), **given)

    simulate(1, work)


def test_a_torch_without_muon_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match=r"torch \S+ has no torch.optim.Muon: install torch 2.9"):
        build_optimizer(small_model(), kind="muon", lr=0.02)


# Updates.


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, False), (0.9, True), (0.0, False)])
def test_signum_is_the_published_update_to_the_bit(momentum: float, nesterov: bool) -> None:
    def by_hand(parameters: Sequence[Tensor]) -> Callable[[], object]:
        momenta = [torch.zeros_like(p) for p in parameters]

        def step() -> None:
            with torch.no_grad():
                for p, m in zip(parameters, momenta, strict=True):
                    assert p.grad is not None
                    m.lerp_(p.grad, 1 - momentum)
                    mean = p.grad.lerp(m, momentum) if nesterov else m
                    p.copy_(p * (1 - 0.01 * 0.1) - 0.01 * mean.sign())

        return step

    def ours(parameters: Sequence[Tensor]) -> Callable[[], object]:
        given: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "weight_decay": 0.1}
        return Signum(parameters, lr=0.01, **given).step

    for mine, other in zip(weights_after(100, ours), weights_after(100, by_hand), strict=True):
        assert torch.equal(mine, other)


@has_muon
def test_muon_with_adamw_is_both_of_torch_to_the_bit_over_100_steps() -> None:
    muon: dict[str, Any] = {"momentum": 0.95, "nesterov": True, "weight_decay": 0.1, "ns_steps": 6}
    adamw: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}

    def torch_own(parameters: Sequence[Tensor]) -> Callable[[], object]:
        matrices = torch.optim.Muon([parameters[1]], lr=0.02, adjust_lr_fn="match_rms_adamw", **muon)
        others = torch.optim.AdamW([parameters[0], *parameters[2:]], lr=0.005, **adamw)
        return lambda: (matrices.step(), others.step())

    model = small_model()
    optimizer = build_optimizer(
        model, kind="muon", lr=0.02, adamw_lr=0.005, adjust_lr_fn="match_rms_adamw", **{**muon, **adamw}
    )
    for number in range(100):
        backward(model, number)
        set_lr(optimizer, 0.02)
        optimizer.step()
        if number == 50:  # its state continues in another one
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = build_optimizer(model, kind="muon", lr=1.0)
            optimizer.load_state_dict(state)
    for mine, other in zip(model.parameters(), weights_after(100, torch_own), strict=True):
        assert torch.equal(mine, other)


def test_adamw_is_that_of_torch_to_the_bit_over_100_steps() -> None:
    given: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    model = small_model()
    optimizer = build_optimizer(model, kind="adamw", lr=0.01, **given)
    for number in range(100):
        backward(model, number)
        optimizer.step()

    def torch_own(parameters: Sequence[Tensor]) -> Callable[[], object]:
        return torch.optim.AdamW(parameters, lr=0.01, **given).step

    for mine, other in zip(model.parameters(), weights_after(100, torch_own), strict=True):
        assert torch.equal(mine, other)
