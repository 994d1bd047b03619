"""Tests that every reducer in the folder keeps every invariant, on threads and on gloo processes."""

import io
import pickle
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from gloo import processes

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.testing.conformance import INVARIANTS
from sage.testing.harness import Case

Invariant = Callable[[Case], None]
HYBRIDS = ["topk+efsign", "topk+terngrad", "adacomp+efsign", "adacomp+terngrad", "sage+qsgd", "topk+server"]
HYBRIDS += ["hadamard+qsgd"]
NAMES = registry.names("reducers") + HYBRIDS

VARIANTS: list[tuple[Literal["none", "residual"], dict[str, Any], list[int]]] = [
    ("none", {}, [1, 3, 4]),
    ("residual", {}, [1, 2, 3, 4]),
    ("residual", {"values": "fp16"}, [3]),
    ("residual", {"indices": "coded"}, [3]),
    ("residual", {"sums": "half"}, [3]),
]
"""Memory, options, and the world sizes to try them with: what two ranks find, three find as well."""


@lru_cache(maxsize=8)  # a case is shared by the invariants of one reducer, which run one after the other
def cases(name: str, world_size: int) -> list[Case]:
    make = registry.load("reducers", name)
    return [
        Case(make, options, world_size, memory=memory)
        for memory, options, world_sizes in VARIANTS
        if world_size in world_sizes and options.keys() <= registry.options(make).keys()
    ]


# Three ranks have uneven shares and both branches of pairwise merges, so two and four find hardly more.
TWO, FOUR = (pytest.param(world_size, marks=pytest.mark.thorough) for world_size in (2, 4))


@pytest.mark.parametrize("world_size", [1, TWO, 3, FOUR])
@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_every_reducer_keeps_every_invariant_on_threads(
    name: str, invariant: Invariant, world_size: int
) -> None:
    for case in cases(name, world_size):
        invariant(case)


# With 1, 2 and 4 ranks, the test on threads covers the reducers and tests/comm/test_wire.py covers gloo.
MORE = [pytest.param(world_size, marks=pytest.mark.thorough) for world_size in (1, 2, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [3, *MORE])
@pytest.mark.parametrize("name", NAMES)
def test_every_reducer_keeps_every_invariant_on_gloo_processes(name: str, world_size: int) -> None:
    assert complaints_on_gloo(world_size)[name] == []


@cache
def complaints_on_gloo(world_size: int) -> dict[str, list[str]]:
    """The broken invariants by reducer; the W processes start once, because starting takes the most time."""

    def work(wire: Wire) -> dict[str, list[str]]:
        def run(world_size: int, work: Callable[[Wire], Any]) -> list[Any]:
            if world_size != wire.world_size:  # an invariant about a single rank, for any world size
                return simulate(world_size, work)
            everybody: list[Any] = [None] * world_size
            dist.all_gather_object(everybody, pickled(work(wire)))
            return [pickle.loads(each) for each in everybody]

        by_name = {
            name: Case(registry.load("reducers", name), {}, world_size, run, memory="residual")
            for name in NAMES
        }
        return {
            name: [c for invariant in INVARIANTS if (c := complaint(invariant, case))]
            for name, case in by_name.items()
        }

    def complaint(invariant: Invariant, case: Case) -> str:
        try:
            invariant(case)
        except Exception as error:
            return f"{invariant.__name__}: {type(error).__name__}: {error}"
        return ""

    return processes(world_size, work, guard=True)[0]


class TensorsAsBytes(pickle.Pickler):
    """Pickles a tensor as its bytes, because torch would save and load a file for each."""

    def reducer_override(self, obj: object) -> Any:
        if type(obj) is not torch.Tensor:
            return NotImplemented
        return tensor, (bytearray(obj.contiguous().view(-1).view(torch.uint8).numpy()), obj.dtype, obj.shape)


def pickled(value: object) -> bytes:
    TensorsAsBytes(file := io.BytesIO()).dump(value)
    return file.getvalue()


def tensor(data: bytearray, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).view(shape)


@pytest.mark.parametrize(
    "value",
    [torch.arange(6.0).view(3, 2).T, torch.empty(0, 4), torch.tensor(torch.nan, dtype=torch.bfloat16)],
)
def test_a_tensor_is_passed_between_processes_bitwise_unchanged(value: torch.Tensor) -> None:
    (there,) = pickle.loads(pickled([value]))
    assert (there.dtype, there.shape) == (value.dtype, value.shape)
    assert there.view(-1).view(torch.uint8).equal(value.reshape(-1).view(torch.uint8))


def test_the_first_eight_reducers_are_among_those_checked() -> None:
    assert set(NAMES) >= {"exact", "bf16", "fp16", "topk", "gtopk", "threshold", "sage", "accordion"}
