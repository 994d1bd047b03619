"""Tests that a mount reduces or refuses, whatever a script does to model, gradients and optimiser."""
# B = batch

import gc
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from gloo import processes
from mounted import Plain, Wrapped, loss, network, once
from torch import Tensor, nn
from torch.distributed._composable import replicate
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

import sage
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.mount import WholeModel
from sage.mount.whole import ModelMount
from sage.reducers.exact import Exact

Case = Callable[[int], Any]
CASES: dict[str, Case] = {}


def case(look: Case) -> Case:
    """The results of all cases on each of two ranks, which start once; a ValueError is a result."""
    CASES[look.__name__] = look
    return look


@cache
def everything() -> list[dict[str, Any]]:
    def work(wire: Wire) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, look in CASES.items():
            try:
                seen[name] = look(wire.rank)
            except ValueError as error:
                seen[name] = error
            gc.collect()  # mounts of earlier cases no longer exist
        return seen

    return processes(2, work)


def seen(look: Case) -> list[Any]:
    return [views[look.__name__] for views in everything()]


def refused(look: Case) -> str:
    """Return the one-line error, which is equal on every rank."""
    first, *others = seen(look)
    assert isinstance(first, ValueError), first
    assert all(str(other) == str(first) for other in others)
    assert "\n" not in str(first)
    return str(first)


def mean_gradients(step: int) -> list[Tensor]:
    """The mean over two ranks of the gradients of autograd alone."""
    models = [network() for _ in range(2)]
    for rank, model in enumerate(models):
        once(model, rank, step)
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    return [(p.grad + q.grad) / 2 for p, q in pairs if p.grad is not None and q.grad is not None]


def off(model: nn.Module, expected: list[Tensor]) -> float:
    """How far the gradients are off."""
    pairs = zip((p.grad for p in model.parameters()), expected, strict=True)
    return max(float((g.double() - e.double()).abs().max()) for g, e in pairs if g is not None)


# Accepted cases.


def own_zero_grad(script: Plain) -> None:
    script.optimizer.zero_grad()


def zero_in_place(script: Plain) -> None:
    script.optimizer.zero_grad(set_to_none=False)


def models_zero_grad(script: Plain) -> None:
    script.model.zero_grad()


def deleted(script: Plain) -> None:
    for p in script.model.parameters():
        p.grad = None


def replaced(script: Plain) -> None:
    for p in script.model.parameters():
        p.grad = torch.zeros_like(p)


def data_replaced(script: Plain) -> None:
    script.mount.zero_grad()
    for p in script.model.parameters():
        p.data = p.data.clone()


def moved_and_back(script: Plain) -> None:
    script.model.double().float()  # leaves every gradient in memory of its own
    script.mount.zero_grad()
    script.optimizer.zero_grad()


ZEROS = {
    each.__name__: each
    for each in (
        own_zero_grad,
        zero_in_place,
        models_zero_grad,
        deleted,
        replaced,
        data_replaced,
        moved_and_back,
    )
}


@case
def ways_to_zero(rank: int) -> dict[str, list[float]]:
    """The error of the gradients at each step, for each way to set them to zero."""
    found: dict[str, list[float]] = {}
    for name, zero in ZEROS.items():
        script = Plain(network(), rank, "exact")
        found[name] = []
        for step in range(3):
            zero(script)
            once(script.model, rank, step)
            script.mount.reduce()
            found[name].append(off(script.model, mean_gradients(step)))
        script.mount.close()
    return found


@pytest.mark.parametrize("zero", ZEROS)
def test_gradients_are_reduced_however_they_are_set_to_zero(zero: str) -> None:
    for view in seen(ways_to_zero):
        assert view[zero] == pytest.approx([0, 0, 0], abs=1e-6)


@case
def none_with_residual(rank: int) -> list[list[float]]:
    """The elements that top-k sends of a weight whose gradient is None on this rank in the second step."""
    model = nn.Linear(2, 1, bias=False)
    mount = sage.reduce_model(model, "topk", density=0.5)
    sent = []
    for step in range(2):
        model.zero_grad()
        if step == 0 or rank == 0:
            (model.weight * torch.tensor([[4.0, 2.0]])).sum().backward()
        mount.reduce()
        assert model.weight.grad is not None
        sent.append(model.weight.grad.view(-1).tolist())
    mount.close()
    return sent


def test_a_parameter_without_a_gradient_on_one_rank_sends_its_residual() -> None:
    # Rank 0 has [4, 4] then, and sends the first of the equals or the second; rank 1 has [0, 2].
    for first, second in seen(none_with_residual):
        assert first == [4.0, 0.0]
        assert second in ([2.0, 1.0], [0.0, 3.0])


@case
def gradients_exchanged(rank: int) -> list[list[float]]:
    """Gradients that the script has swapped or transposed before the reduction."""
    model = nn.ParameterList([torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 2)])
    mount = sage.reduce_model(model, "exact")
    values = torch.arange(4.0).view(2, 2) + 10 * rank
    a, b, c = model
    (a * values + b * (values + 100) + c * (values + 200)).sum().backward()
    a.grad, b.grad = b.grad, a.grad
    assert c.grad is not None
    c.grad = c.grad.t()
    mount.reduce()
    found = [p.grad.reshape(-1).tolist() for p in model if p.grad is not None]
    mount.close()
    return found


def test_gradients_that_the_script_has_replaced_are_reduced_in_their_place() -> None:
    for found in seen(gradients_exchanged):
        assert found == [[105, 106, 107, 108], [5, 6, 7, 8], [205, 207, 206, 208]]


@case
def half_after_mounting(rank: int) -> tuple[float, set[torch.dtype]]:
    """A model that is converted to another dtype after mounting and trained further."""
    script = Plain(network(), rank, "topk", density=1.0)
    script.gradients(0)
    script.model.double()
    script.mount.zero_grad()
    once(script.model, rank, 1)
    script.mount.reduce()
    dtypes = {p.grad.dtype for p in script.model.parameters() if p.grad is not None}
    found = off(script.model, mean_gradients(1))
    script.mount.close()
    return found, dtypes


def test_a_model_that_is_cast_after_mounting_is_reduced_in_its_new_dtype() -> None:
    for found, dtypes in seen(half_after_mounting):
        assert found < 1e-5
        assert dtypes == {torch.float64}


# Refused cases.


def plain(rank: int) -> Plain:
    script = Plain(network(), rank, "exact")
    script.gradients(0)
    script.optimizer.step()
    return script


@case
def thawed(rank: int) -> None:
    model = network()
    model[4].requires_grad_(False)
    script = plain_of(model, rank)
    model[4].requires_grad_(True)
    script.gradients(1)


def plain_of(model: nn.Module, rank: int) -> Plain:
    return Plain(model, rank, "exact")


@case
def frozen(rank: int) -> None:
    script = plain(rank)
    script.model[4].requires_grad_(False)  # type: ignore[index]
    script.gradients(1)


@case
def assigned(rank: int) -> None:
    script = plain(rank)
    script.model.load_state_dict({k: v.clone() for k, v in script.model.state_dict().items()}, assign=True)
    script.gradients(1)


@case
def added(rank: int) -> None:
    script = plain(rank)
    script.model.append(nn.Linear(10, 10))  # type: ignore[operator]
    script.gradients(1)


@case
def tied_later(rank: int) -> None:
    script = plain(rank)
    script.model[8].bias = nn.Parameter(torch.zeros(10))  # type: ignore[index]
    script.gradients(1)


@case
def removed(rank: int) -> None:
    script = plain(rank)
    script.model[8].bias = None  # type: ignore[index]
    script.gradients(1)


@case
def forgotten(rank: int) -> None:
    """The script steps without `reduce()`."""
    script = plain(rank)
    script.mount.zero_grad()
    once(script.model, rank, 1)
    script.optimizer.step()


@case
def optimiser_of_old_parameters(rank: int) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    mount = sage.reduce_model(model, "exact")
    once(model, rank, 0)
    mount.reduce()
    optimizer.step()


@case
def optimiser_of_new_parameters(rank: int) -> None:
    model = network()
    sage_mount = sage.reduce_model(model, "exact")
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    once(model, rank, 0)
    optimizer.step()
    sage_mount.close()


@case
def ddp_assigned(rank: int) -> None:
    script = Wrapped(network(), rank, "exact")
    script.gradients(0)
    script.model.load_state_dict({k: v.clone() for k, v in script.model.state_dict().items()}, assign=True)
    script.gradients(1)


@case
def ddp_thawed(rank: int) -> None:
    model = network()
    model[4].requires_grad_(False)
    script = Wrapped(model, rank, "exact")
    script.gradients(0)
    model[4].requires_grad_(True)
    script.gradients(1)


@case
def ddp_thawed_before_mounting(rank: int) -> None:
    model = network()
    model[4].requires_grad_(False)
    wrapped = DistributedDataParallel(model)
    model[4].requires_grad_(True)
    sage.ddp_hook(wrapped, "exact")


@case
def ddp_never_synchronised(rank: int) -> None:
    script = Wrapped(network(), rank, "exact")
    with script.ddp.no_sync():
        once(script.ddp, rank, 0)
    script.optimizer.step()


@case
def ddp_past_the_wrapper(rank: int) -> None:
    """Forward through the module and not through DDP: DDP brings no gradient."""
    script = Wrapped(network(), rank, "exact")
    script.gradients(0)
    script.optimizer.zero_grad()
    loss(script.model, rank, 1).backward()
    script.optimizer.step()


@case
def two_mounts(rank: int) -> None:
    model = network()
    first = sage.reduce_model(model, "exact")
    try:
        sage.reduce_model(model, "topk")
    finally:
        first.close()


@case
def two_hooks(rank: int) -> None:
    script = Wrapped(network(), rank, "exact")
    sage.ddp_hook(script.ddp, "topk")


@case
def another_hook(rank: int) -> None:
    model = DistributedDataParallel(network())
    model.register_comm_hook(None, fp16_compress_hook)
    sage.ddp_hook(model, "topk")


@case
def a_builtin_hook(rank: int) -> None:
    model = DistributedDataParallel(network())
    model._register_builtin_comm_hook(torch.distributed.BuiltinCommHookType.FP16_COMPRESS)
    sage.ddp_hook(model, "topk")


@case
def ddp_inside(rank: int) -> None:
    sage.reduce_model(DistributedDataParallel(network()), "topk")


@case
def ddp_deep_inside(rank: int) -> None:
    sage.reduce_model(nn.Sequential(DistributedDataParallel(network()), nn.Linear(10, 2)), "topk")


@case
def replicated_inside(rank: int) -> None:
    sage.reduce_model(replicate(network()), "topk")


@case
def meta(rank: int) -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    sage.reduce_model(model, "topk")


@case
def lazy(rank: int) -> None:
    sage.reduce_model(nn.LazyLinear(3), "topk")


@case
def float8(rank: int) -> None:
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.zeros(2, 3).to(torch.float8_e4m3fn))
    sage.reduce_model(model, "topk")


@case
def expanded_buffer(rank: int) -> None:
    model = network()
    model.register_buffer("scale", torch.zeros(1).expand(3))
    sage.reduce_model(model, "topk")


@case
def sparse_buffer(rank: int) -> None:
    model = network()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    sage.reduce_model(model, "topk")


@case
def joined(rank: int) -> None:
    script = Wrapped(network(), rank, "topk")
    with script.ddp.join():
        script.gradients(0)


@case
def mounted_within_join(rank: int) -> None:
    model = DistributedDataParallel(network())
    with model.join():
        sage.ddp_hook(model, "topk")


@case
def closed(rank: int) -> None:
    script = Wrapped(network(), rank, "topk")
    script.gradients(0)
    script.mount.close()
    script.gradients(1)


@case
def ranks_differ(rank: int) -> None:
    sage.reduce_model(network(), "topk", density=0.1 * (1 + rank))


@case
def models_differ(rank: int) -> None:
    sage.reduce_model(nn.Linear(3, 2 + rank), "topk")


REFUSED: dict[Case, str] = {
    thawed: "the parameter '4.weight' was unfrozen or added after mounting.*mount the reducer again",
    frozen: "the parameter '4.weight' was frozen .requires_grad=False. after mounting",
    assigned: "the parameter '0.weight' was replaced by another object.*load_state_dict.assign=True",
    added: "the parameter '9.weight' was unfrozen or added after mounting",
    tied_later: "the parameter '8.bias' was replaced by another object",
    removed: "the parameter '8.bias' was tied to another one or removed",
    forgotten: "gradients that were not reduced: call mount.reduce.. between",
    optimiser_of_old_parameters: "in place of the reduced parameter '0.weight': create the optimiser",
    optimiser_of_new_parameters: "the parameter '0.weight' was replaced by another object",
    ddp_assigned: "the parameter '0.weight' was replaced by another object.*wrap the model in .* again",
    ddp_thawed: "the parameter '4.weight' was unfrozen or added after mounting",
    ddp_thawed_before_mounting: "reduces 8 parameters, but 10 require a gradient.*'4.weight'",
    ddp_never_synchronised: "not reduced: run the last backward outside no_sync..",
    ddp_past_the_wrapper: "not reduced: run the last backward outside no_sync.., through the wrapped model",
    two_mounts: "a reducer is already mounted on the parameter '0.weight': close",
    two_hooks: "a reducer is already mounted on the parameter '.*'|already has a communication hook",
    another_hook: "the model already has a communication hook",
    a_builtin_hook: "the model already has a communication hook",
    ddp_inside: "the model is wrapped in DistributedDataParallel.*use sage.ddp_hook",
    ddp_deep_inside: "'0' of the model is wrapped in DistributedDataParallel.*use sage.ddp_hook",
    replicated_inside: "the model is wrapped in DistributedDataParallel",
    meta: "the parameter 'weight' is on the meta device: materialise",
    lazy: "the parameter 'weight' has no shape yet: run one forward pass",
    float8: "the parameter 'weight' is torch.float8_e4m3fn: expected torch.float16",
    expanded_buffer: "the elements of the buffer 'scale' share memory.*clone",
    sparse_buffer: "the buffer 'graph' is torch.sparse_coo: expected a dense tensor",
    joined: "join.. is not supported with a SAGE hook",
    mounted_within_join: "join.. is not supported with a SAGE hook",
    closed: "the mount of this model is closed",
    ranks_differ: "rank 0 has topk.density=0.1. .* rank 1 has topk.density=0.2.",
    models_differ: r"rank 0 has weight \[2, 3\] torch.float32, rank 1 has weight \[3, 3\]",
}


@pytest.mark.parametrize("look", REFUSED, ids=lambda look: look.__name__)
def test_parameters_that_would_be_reduced_incorrectly_or_not_at_all_are_refused_by_name(look: Case) -> None:
    assert re.search(REFUSED[look], refused(look))


# Unchanged cases.


@case
def fair_use(rank: int) -> bool:
    """Three models with an optimiser each; two are mounted, one has no gradient; an optimiser for a part."""
    first, second = network(), network()
    mounts = [sage.reduce_model(first, "exact"), sage.reduce_model(second, "exact")]
    third = network()
    optimizers = [torch.optim.SGD(each.parameters(), 0.1) for each in (first, second, third)]
    once(first, rank, 0)
    mounts[0].reduce()
    optimizers[0].step()
    once(third, rank, 0)
    optimizers[2].step()
    optimizers[1].step()  # without a gradient, the optimiser steps with zeros
    halves = [torch.optim.SGD(part.parameters(), 0.1) for part in (first[:5], first[5:])]
    mounts[0].zero_grad()
    once(first, rank, 1)
    mounts[0].reduce()
    for each in halves:
        each.step()
    for mount in mounts:
        mount.close()
    again = sage.reduce_model(first, "exact")
    again.close()
    return True


def test_scripts_with_several_models_and_optimisers_are_accepted() -> None:
    assert seen(fair_use) == [True, True]


@case
def compiled(rank: int) -> list[float]:
    """The error of the gradients with torch.compile, in either order with each mount."""
    found = []
    for order in ("plain", "wrapped", "inside", "outside"):
        model: Any = network()
        runs: Any = model
        mount: Any = None
        # Traced, not compiled to machine code, which takes a minute here.
        compile_: Any = partial(torch.compile, backend="eager")
        if order == "plain":
            mount = sage.reduce_model(model, "exact")
            runs = compile_(model)
        elif order == "wrapped":
            runs = compile_(model)
            mount = sage.reduce_model(runs, "exact")
        elif order == "inside":
            runs = DistributedDataParallel(compile_(model))
            mount = sage.ddp_hook(runs, "exact")
        else:
            wrapped = DistributedDataParallel(model)
            runs = compile_(wrapped)
            mount = sage.ddp_hook(runs, "exact")
        for step in range(2):
            runs.zero_grad()
            once(runs, rank, step)
            if order in ("plain", "wrapped"):
                mount.reduce()
            found.append(off(model, mean_gradients(step)))
        mount.close()
    return found


def test_a_model_compiled_before_or_after_mounting_has_the_same_mean() -> None:
    for found in seen(compiled):
        assert max(found) < 1e-5


def test_a_mount_without_references_does_not_keep_the_model_alive() -> None:
    def work(wire: Wire) -> None:
        model = network()
        mount = ModelMount(model, WholeModel(model, Exact()), wire)
        del mount
        gc.collect()
        again = ModelMount(model, WholeModel(model, Exact()), wire)
        once(model, 0, 0)
        again.reduce()

    simulate(1, work)


# Unusual gradients and buffers.


@case
def odd_buffers(rank: int) -> list[Any]:
    """Buffers of dtypes that a backend may not know, after mounting: rank 0's."""
    model = network()
    buffers = {
        "flags": torch.tensor([rank == 0, True]),
        "numbers": torch.tensor([rank, 7], dtype=torch.int16),
        "phases": torch.tensor([1j * (rank + 1), 2]),
        "conjugate": torch.tensor([1j * (rank + 1), 2]).conj(),
        "rows": torch.full((3, 4), float(rank))[:, ::2],
        "nothing": torch.zeros(0, 3),
        "coarse": torch.full((2,), 1.0 + rank).to(torch.float8_e5m2),
    }
    for name, buffer in buffers.items():
        model.register_buffer(name, buffer)
    sage.reduce_model(model, "exact").close()
    return [
        buffer.float().tolist() if name == "coarse" else buffer.tolist() for name, buffer in buffers.items()
    ]


def test_buffers_of_any_dtype_are_the_first_ranks_everywhere() -> None:
    first, second = seen(odd_buffers)
    assert first == second
    assert first[0] == [True, True]
    assert first[1] == [0, 7]
    assert first[2] == [1j, 2]
