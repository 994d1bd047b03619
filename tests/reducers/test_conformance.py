"""Every reducer in the folder keeps every invariant: on threads, and on gloo processes."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, TypeVar

import pytest
import torch.distributed as dist
from gloo import processes

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.testing.conformance import INVARIANTS
from sage.testing.harness import Case

T = TypeVar("T")
Invariant = Callable[[Case], None]
HYBRIDS = ["topk+efsign", "topk+terngrad", "adacomp+efsign", "adacomp+terngrad", "sage+qsgd"]
NAMES = registry.names("reducers") + HYBRIDS

VARIANTS: list[tuple[Literal["none", "residual"], dict[str, Any], list[int]]] = [
    ("none", {}, [1, 2, 3, 4]),
    ("residual", {}, [1, 2, 3, 4]),
    ("residual", {"values": "fp16"}, [2, 3]),
    ("residual", {"indices": "coded"}, [3]),
]
"""Memory, options, and the world sizes to try them with."""


def cases(name: str, world_size: int) -> Iterator[Case]:
    make = registry.load("reducers", name)
    for memory, options, world_sizes in VARIANTS:
        if world_size in world_sizes and options.keys() <= registry.options(make).keys():
            yield Case(make, options, world_size, memory=memory)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_every_reducer_keeps_every_invariant_on_threads(
    name: str, invariant: Invariant, world_size: int
) -> None:
    for case in cases(name, world_size):
        invariant(case)


@pytest.mark.slow
# With four ranks, the test on threads covers the reducers and tests/comm/test_wire.py covers gloo.
@pytest.mark.parametrize("world_size", [1, 2, 3, pytest.param(4, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", NAMES)
def test_every_reducer_keeps_every_invariant_on_gloo_processes(name: str, world_size: int) -> None:
    assert complaints_on_gloo(world_size)[name] == []


@cache
def complaints_on_gloo(world_size: int) -> dict[str, list[str]]:
    """What broke, by reducer: all of them in one start of W processes, as starting them takes longest."""

    def work(wire: Wire) -> dict[str, list[str]]:
        def run(size: int, job: Callable[[Wire], T]) -> list[T]:
            if size != wire.world_size:  # an invariant about a rank alone, whatever the world
                return simulate(size, job)
            own = job(wire)
            everybody: list[Any] = [None] * size
            dist.all_gather_object(everybody, own)
            return everybody

        return {
            name: [c for invariant in INVARIANTS if (c := complaint(invariant, name, run))] for name in NAMES
        }

    def complaint(invariant: Invariant, name: str, run: Any) -> str:
        try:
            invariant(Case(registry.load("reducers", name), {}, world_size, run, memory="residual"))
        except Exception as error:
            return f"{invariant.__name__}: {type(error).__name__}: {error}"
        return ""

    return processes(world_size, work, guard=True)[0]


def test_the_laws_are_held_against_the_first_eight_reducers() -> None:
    assert set(NAMES) >= {"exact", "bf16", "fp16", "topk", "gtopk", "threshold", "sage", "accordion"}
