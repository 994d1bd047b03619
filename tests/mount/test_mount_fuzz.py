"""Random models through the mounts: the mean of all ranks, or a one-line refusal that names the parameter.

`SAGE_FUZZ=1000` tries more of them.
"""
# B = batch

import copy
from typing import Any

import torch
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.mount import WholeModel
from sage.mount.whole import ModelMount

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
SHAPES = st.sampled_from([(), (1,), (3,), (0,), (0, 4), (2, 3), (4, 1, 2), (5, 0), (7, 6)])
EXACT = ("exact", "ps")
"""Reducers whose mean is the plain mean, to the dtype's precision."""


class Leaf(nn.Module):
    def __init__(self, kinds: list[tuple[tuple[int, ...], torch.dtype, bool]]) -> None:
        super().__init__()
        for number, (shape, dtype, trains) in enumerate(kinds):
            p = nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=trains)
            self.register_parameter(f"p{number}", p)


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """A tree of modules; mostly of one dtype, as most models are."""
    one = draw(st.sampled_from(DTYPES))
    mixes = draw(st.integers(0, 4)) == 0
    dtype = st.sampled_from(DTYPES) if mixes else st.just(one)
    kind = st.tuples(SHAPES, dtype, st.sampled_from([True, True, True, False]))
    leaves = draw(st.lists(st.lists(kind, min_size=0, max_size=4), min_size=1, max_size=3))
    model: nn.Module = nn.ModuleList(Leaf(leaf) for leaf in leaves)
    if draw(st.booleans()) and leaves[0]:
        model.append(Leaf([]))  # type: ignore[operator]
        model[-1].register_parameter("tied", model[0].p0)  # type: ignore[index]
    if draw(st.booleans()):
        model = nn.Sequential(nn.Identity(), model)
    return model


def gradients(model: nn.Module, rank: int, step: int) -> list[Tensor | None]:
    """This rank's gradient of each trainable parameter; None if it has none in this step."""
    found: list[Tensor | None] = []
    for number, p in enumerate(p for p in model.parameters() if p.requires_grad):
        generator = torch.Generator().manual_seed(1000 * step + 10 * number + rank)
        real = p.dtype if not p.is_complex() else torch.view_as_real(p.detach()).dtype
        shape = (*p.shape, 2) if p.is_complex() else p.shape
        values = torch.randn(shape, generator=generator).to(real)
        if (number + step + rank) % 5 == 4:
            found.append(None)
        else:
            found.append(torch.view_as_complex(values) if p.is_complex() else values)
    return found


def backward(model: nn.Module, given: list[Tensor | None]) -> None:
    """Give each parameter this gradient through autograd."""
    loss = torch.zeros((), dtype=torch.float64)
    for p, g in zip((p for p in model.parameters() if p.requires_grad), given, strict=True):
        if g is not None:
            product = (g.conj() * p).real if p.is_complex() else g * p
            loss = loss + product.double().sum()
    if loss.requires_grad:
        loss.backward()


def mean(given: list[Tensor | None], others: list[Tensor | None], like: list[Tensor]) -> list[Tensor]:
    return [
        (
            (torch.zeros_like(p) if a is None else a).to(
                torch.complex128 if p.is_complex() else torch.float64
            )
            + (torch.zeros_like(p) if b is None else b)
        )
        / 2
        for a, b, p in zip(given, others, like, strict=True)
    ]


Outcome = list[tuple[list[Tensor | None], bool]] | ValueError


def trained(wire: Wire, model: nn.Module, name: str, zero: str, min_compress: int) -> Outcome:
    """Every gradient after each of two steps, and whether all state was finite; or the refusal."""
    own = copy.deepcopy(model)
    try:
        whole = WholeModel(own, registry.load("reducers", name)(), min_compress=min_compress)
        mount = ModelMount(own, whole, wire)
        seen: Any = []
        for step in range(2):
            {"mount": mount.zero_grad, "model": own.zero_grad}[zero]()
            backward(own, gradients(own, wire.rank, step))
            mount.reduce()
            finite = all(
                bool(x.isfinite().all())
                for held in mount.state_dict().values()
                for key, x in held.items()
                if key != "reducer.last_G"  # of which sidco's begins at infinity
            )
            grads = [
                p.grad.clone() if p.grad is not None else None for p in own.parameters() if p.requires_grad
            ]
            seen.append((grads, finite))
        mount.load_state_dict(copy.deepcopy(mount.state_dict()))
        return seen
    except ValueError as error:
        return error


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(
    model=models(),
    name=st.sampled_from(["exact", "exact", *registry.names("reducers"), "topk+terngrad"]),
    zero=st.sampled_from(["mount", "model"]),
    min_compress=st.sampled_from([0, 0, 5, 100]),
)
def test_random_models_are_reduced_correctly_or_refused_by_name(
    model: nn.Module, name: str, zero: str, min_compress: int
) -> None:
    outcomes = simulate(2, lambda wire: trained(wire, model, name, zero, min_compress))
    first, second = outcomes
    if isinstance(first, ValueError):
        assert isinstance(second, ValueError)
        assert str(first) == str(second)
        assert "\n" not in str(first)
        named = [repr(name) for name, _ in model.named_parameters()]
        assert any(each in str(first) for each in named) or "no parameter that requires" in str(first)
        return
    assert not isinstance(second, ValueError)
    trainable = [p.detach() for p in model.parameters() if p.requires_grad]
    for step, ((ours, finite), (theirs, _)) in enumerate(zip(first, second, strict=True)):
        assert finite
        expected = mean(gradients(model, 0, step), gradients(model, 1, step), trainable)
        for a, b, e, p in zip(ours, theirs, expected, trainable, strict=True):
            assert a is not None
            assert b is not None
            assert a.dtype == p.dtype
            assert a.shape == p.shape
            assert torch.equal(a, b)
            if name in EXACT:
                tolerance = 4 * torch.finfo(p.dtype).eps
                torch.testing.assert_close(a.to(e.dtype), e, rtol=tolerance, atol=4 * tolerance)
