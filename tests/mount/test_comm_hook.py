"""Tests of the `(state, hook)` pair in scripts and frameworks that wrap the model themselves."""

import gc
import os
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gloo import processes
from mounted import SEVERAL, Wrapped, alone, network, once, same
from torch import Tensor, nn
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


def with_accelerate(rank: int) -> tuple[list[Tensor], Any]:
    """By a handler: Accelerator.prepare reads DDP's arguments from it and passes it the wrapped model."""
    # It reads the ranks from the variables that its launcher sets, such as torchrun.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "OMP_NUM_THREADS": "1"}
    accelerate: Any = import_module("accelerate")
    state, hook = sage.comm_hook(None, "topk", density=0.1)

    class WithSage(accelerate.DistributedDataParallelKwargs):  # type: ignore[misc]
        def register_comm_hook(self, model: DistributedDataParallel) -> None:
            model.register_comm_hook(state, hook)

    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.ddp_handler = WithSage(bucket_cap_mb=SEVERAL)
    model = network()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    assert isinstance(model, DistributedDataParallel)
    for step in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy  # the same loss as elsewhere, its backward by accelerate
        generator = torch.Generator().manual_seed(100 * step + rank)
        x_BCHW = torch.randn(6, 1, 8, 8, generator=generator)
        accelerator.backward(loss(model(x_BCHW), torch.randint(10, (6,), generator=generator)))
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()], state


def with_lightning(rank: int) -> tuple[list[Tensor], Any]:
    """Like DDPStrategy, by Lightning's own function."""
    lightning: Any = import_module("lightning.pytorch.overrides.distributed")
    state, hook = sage.comm_hook(None, "topk", density=0.1)
    wrapped = DistributedDataParallel(network(), **SMALL)
    lightning._register_ddp_comm_hook(model=wrapped, ddp_comm_state=state, ddp_comm_hook=hook)
    return trained(wrapped, rank), state


WAYS = {
    "in a script": (in_a_script, "torch"),
    "before there is a model": (before_there_is_a_model, "torch"),
    "for the plain module": (for_the_plain_module, "torch"),
    "accelerate": (with_accelerate, "accelerate"),
    "lightning": (with_lightning, "lightning"),
}


def is_there(package: str) -> bool:
    return find_spec(package) is not None


@cache
def everything() -> list[dict[str, tuple[bool, int]]]:
    """For each way, whether its parameters equal those of `sage.ddp_hook`, and the traffic of its mount."""

    def work(wire: Wire) -> dict[str, tuple[bool, int]]:
        script = Wrapped(network(), wire.rank, "topk", density=0.1, ddp=SMALL)
        expected = script.train(close=False)
        payload = script.mount.total.payload_bytes
        found = {}
        for name, (way, package) in WAYS.items():
            if is_there(package):
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
    if not is_there(WAYS[way][1]):
        pytest.skip(f"{WAYS[way][1]} is not installed")
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
