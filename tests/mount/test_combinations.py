"""Tests of `sage.ddp_hook` with torch.compile, a static graph, float64 and several dtypes in one model."""

from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import processes
from mounted import SEVERAL, Wrapped, alone, network, once, same
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sage
from sage.comm.wire import Wire

SMALL = {"bucket_cap_mb": SEVERAL}


class Compiled(Wrapped):
    """A DDP script whose model is compiled before it is wrapped, or after."""

    def __init__(self, rank: int, where: str) -> None:
        # Traced and differentiated by torch.compile, but not compiled to machine code, which takes a minute.
        compile_: Any = partial(torch.compile, backend="aot_eager")
        model = network()
        super().__init__(
            compile_(model) if where == "before" else model, rank, "topk", density=0.1, ddp=SMALL
        )
        if where == "after":
            self.ddp = compile_(self.ddp)


def compiled(rank: int) -> dict[str, tuple[float, bool]]:
    """For each order, the largest difference to training without torch.compile; whether the bytes agree."""
    # torch.compile divides the graph by the buckets of DDP, and requires that the first is not the largest.
    setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1024)  # noqa: B010
    plain = Wrapped(network(), rank, "topk", density=0.1, ddp=SMALL)
    expected = plain.train(range(3))
    found = {}
    for where in ("before", "after"):
        script = Compiled(rank, where)
        pairs = zip(expected, script.train(range(3)), strict=True)
        off = max(float((a - b).abs().max()) for a, b in pairs)
        ours, theirs = script.mount.wire.ledger, plain.mount.wire.ledger
        found[where] = off, (ours.payload, ours.sent) == (theirs.payload, theirs.sent)
    return found


def static_graph(rank: int) -> bool:
    with_it, without = (
        Wrapped(network(), rank, "topk", density=0.1, ddp={**SMALL, "static_graph": is_static})
        for is_static in (True, False)
    )
    return same(with_it.train(), without.train())


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x_B: Tensor) -> Tensor:
        return x_B.to(self.dtype)


def mixed() -> nn.Module:
    """The network with layers in float32, float64 and bfloat16."""
    model = network()
    model[4].double()
    for layer in (model[6], model[8]):
        layer.bfloat16()
    model.insert(4, Cast(torch.float64))
    model.insert(6, Cast(torch.bfloat16))
    return model.append(Cast(torch.float32))


def conserved(rank: int, reducer: str, **options: Any) -> dict[str, float]:
    """The largest error, by dtype, of the sum of means against what the ranks did not keep."""
    script = Wrapped(mixed(), rank, reducer, **options, ddp=SMALL)
    means = {name: torch.zeros_like(p) for name, p in script.model.named_parameters()}
    own = {name: torch.zeros_like(p) for name, p in script.model.named_parameters()}
    for step in range(3):
        once(reference := mixed(), rank, step)
        script.gradients(step)
        for model, sums in ((script.model, means), (reference, own)):
            for name, p in model.named_parameters():
                assert p.grad is not None
                sums[name] += p.grad
    off: dict[str, float] = {}
    for name, held in script.mount.state_dict().items():
        kept = held.get("residual_N", 0)
        sent = script.mount.wire.mean((own[name] - kept).contiguous())
        error = float((sent - means[name]).abs().max() / sent.abs().max())
        kind = str(means[name].dtype)
        off[kind] = max(off.get(kind, 0.0), error)
    script.mount.close()
    return off


@cache
def seen() -> list[dict[str, Any]]:
    """The results of two ranks, which start once."""

    def work(wire: Wire) -> dict[str, Any]:
        return {
            "compiled": compiled(wire.rank),
            "static graph": static_graph(wire.rank),
            "topk": conserved(wire.rank, "topk", density=0.1),
            "exact": conserved(wire.rank, "exact"),
        }

    return processes(2, work, timeout=120)


@pytest.mark.parametrize("where", ["before", "after"])
def test_with_torch_compile_the_result_is_equal_within_rounding_and_the_bytes_are_equal(
    where: str,
) -> None:
    for view in seen():
        off, same_bytes = view["compiled"][where]
        assert off < 1e-5
        assert same_bytes


def test_a_static_graph_gives_the_same_to_the_bit() -> None:
    assert all(view["static graph"] for view in seen())


def test_nothing_is_lost_in_a_model_of_three_dtypes() -> None:
    for view in seen():
        assert view["topk"].keys() == {"torch.float32", "torch.float64", "torch.bfloat16"}
        assert view["topk"]["torch.float32"] < 1e-6
        assert view["topk"]["torch.float64"] < 1e-6  # values and residual are float32
        assert view["topk"]["torch.bfloat16"] < 0.02


def test_exact_keeps_the_precision_of_float64() -> None:
    assert all(view["exact"]["torch.float64"] < 1e-14 for view in seen())


@alone
def test_ddps_reducer_in_python_is_refused() -> None:
    with torch._dynamo.config.patch(optimize_ddp="python_reducer"):
        model = DistributedDataParallel(network())
    with pytest.raises(ValueError, match="optimize_ddp is 'python_reducer', with which"):
        sage.ddp_hook(model, "topk")
