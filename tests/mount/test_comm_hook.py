"""Tests of the `(state, hook)` pair in scripts that wrap the model themselves."""

import gc
import re
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gloo import processes
from mounted import SEVERAL, Wrapped, alone, network, once, same
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import sage
from sage.comm.wire import Wire

SMALL: dict[str, Any] = {"bucket_cap_mb": SEVERAL}


def trained(wrapped: DistributedDataParallel, rank: int) -> list[Tensor]:
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1, momentum=0.9)
    for step in range(4):
        optimizer.zero_grad()
        once(wrapped, rank, step)
        optimizer.step()
    return [p.detach().clone() for p in wrapped.parameters()]


def in_a_script(rank: int) -> tuple[list[Tensor], Any]:
    wrapped = DistributedDataParallel(network(), **SMALL)
    state, hook = sage.comm_hook(wrapped, "topk", density=0.1)
    wrapped.register_comm_hook(state, hook)
    return trained(wrapped, rank), state


def before_there_is_a_model(rank: int) -> tuple[list[Tensor], Any]:
    state, hook = sage.comm_hook(None, "topk", density=0.1)
    wrapped = DistributedDataParallel(network(), **SMALL)
    wrapped.register_comm_hook(state, hook)
    return trained(wrapped, rank), state


def for_the_plain_module(rank: int) -> tuple[list[Tensor], Any]:
    model = network()
    state, hook = sage.comm_hook(model, "topk", density=0.1)
    wrapped = DistributedDataParallel(model, **SMALL)
    wrapped.register_comm_hook(state, hook)
    return trained(wrapped, rank), state


WAYS = {
    "in a script": in_a_script,
    "before there is a model": before_there_is_a_model,
    "for the plain module": for_the_plain_module,
}


@cache
def everything() -> list[dict[str, tuple[bool, int]]]:
    """For each way, whether its parameters equal those of `sage.ddp_hook`, and the traffic of its mount."""

    def work(wire: Wire) -> dict[str, tuple[bool, int]]:
        script = Wrapped(network(), wire.rank, "topk", density=0.1, ddp=SMALL)
        expected = script.train(close=False)
        payload = script.mount.total.payload_bytes
        found = {}
        for name, way in WAYS.items():
            parameters, state = way(wire.rank)
            found[name] = same(expected, parameters), state.mount.total.payload_bytes == payload
            state.mount.close()
            del state
            gc.collect()
        script.mount.close()
        return found

    return processes(2, work)


@pytest.mark.parametrize("way", WAYS)
def test_the_pair_gives_the_same_as_ddp_hook(way: str) -> None:
    for view in everything():
        assert view[way] == (True, True)


@alone
def test_a_wrong_registration_is_a_one_line_error_with_what_to_do() -> None:
    for function in (sage.ddp_hook, sage.comm_hook, sage.reduce_model, sage.fsdp_hook):
        with pytest.raises(ValueError, match=r"not a communication hook: call sage.ddp_hook") as error:
            DistributedDataParallel(network()).register_comm_hook(None, function)
        assert "\n" not in str(error.value)
    _, hook = sage.comm_hook(None, "topk")
    for state in (None, SimpleNamespace()):
        model = DistributedDataParallel(network())
        model.register_comm_hook(state, hook)
        with pytest.raises(ValueError, match=r"registered with the state .*: register both"):
            once(model, 0, 0)


@alone
def test_a_pair_that_does_not_fit_its_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no reducer is called 'topl'"):
        sage.comm_hook(None, "topl")
    with pytest.raises(ValueError, match="no option of the reducer topk is called 'densty'"):
        sage.comm_hook(None, "topk", densty=0.1)
    state, hook = sage.comm_hook(network(), "topk")
    with pytest.raises(ValueError, match="not mounted before the first backward"):
        _ = state.mount
    model = DistributedDataParallel(network())
    model.register_comm_hook(state, hook)
    with pytest.raises(ValueError, match="was created for a Sequential but registered with a wrapper"):
        once(model, 0, 0)
    state, hook = sage.comm_hook(None, "topk")
    models = [DistributedDataParallel(network()) for _ in range(2)]
    for each in models:
        each.register_comm_hook(state, hook)
    with pytest.raises(ValueError, match="registered with 2 models: create one for each"):
        once(models[0], 0, 0)
    state, hook = sage.comm_hook(None, "topk")
    joined = DistributedDataParallel(network())
    joined.register_comm_hook(state, hook)
    with joined.join(), pytest.raises(ValueError, match="join.. is not supported with a SAGE hook"):
        once(joined, 0, 0)


def test_inspect_shows_the_true_signatures() -> None:
    import inspect

    parameters = inspect.signature(sage.ddp_hook).parameters
    assert [*parameters][:2] == ["model", "reducer"]
    assert "bucket" not in parameters
    assert re.match(r"\(model: .*reducer: ", str(inspect.signature(sage.reduce_model)))
    with pytest.raises(KeyError):
        parameters["other"]
