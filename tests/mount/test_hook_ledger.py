"""Tests that `sage.ledger` counts the bytes of hooks that are not SAGE's own."""
# W = ranks

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import processes
from mounted import SEVERAL, network, once
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

import sage
from sage.comm.ledger import ring_all_gather, ring_all_reduce
from sage.mount.hook_ledger import HookLedger, counted

WORLD_SIZE = 2
RANK = 1  # of PowerSGD


def steps(
    rank: int, hook: Any, state: Any = None, count: int = 3, bucket_mb: float = SEVERAL
) -> tuple[list[Tensor], int]:
    """Train a few steps; return the parameters and the number of parameters' elements."""
    model = DistributedDataParallel(network(), bucket_cap_mb=bucket_mb)
    model.register_comm_hook(state, hook)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(count):
        optimizer.zero_grad()
        once(model, rank, step)
        dist.all_reduce(torch.ones(1000))  # the script's own collective, which is not part of the hook
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()], sum(p.numel() for p in model.parameters())


def with_bf16(rank: int) -> Any:
    bare, _ = steps(rank, default_hooks.bf16_compress_hook)
    hook = sage.ledger(default_hooks.bf16_compress_hook)
    return (bare, *steps(rank, hook), hook.last_step, hook.total, hook.exposed_seconds, hook.hook_seconds)


@pytest.fixture(scope="module")
def bf16() -> list[Any]:
    """The results of torch's bf16 hook on each rank."""
    return processes(WORLD_SIZE, lambda wire: with_bf16(wire.rank))


def test_a_hook_trains_as_without_the_ledger(bf16: list[Any]) -> None:
    for bare, counted_too, *_ in bf16:
        assert all(torch.equal(a, b) for a, b in zip(bare, counted_too, strict=True))


def test_the_bytes_of_a_cast_are_two_an_element(bf16: list[Any]) -> None:
    for _, _, numel, last, total, exposed, inside in bf16:
        assert (last.payload_bytes, last.dense_bytes) == (2 * numel, 4 * numel)
        assert (last.wire_sent, last.wire_received) == ring_all_reduce(2 * numel, WORLD_SIZE)
        assert (total.steps, total.payload_bytes) == (3, 6 * numel)
        assert exposed > 0
        assert inside > 0


def with_powersgd(rank: int) -> Any:
    state = powerSGD_hook.PowerSGDState(
        process_group=None,
        matrix_approximation_rank=RANK,
        start_powerSGD_iter=2,
        min_compression_rate=2,
    )
    hook = sage.ledger(powerSGD_hook.powerSGD_hook)
    # In one bucket: over gloo, torch's hook waits within callbacks, whose order differs between ranks.
    steps(rank, hook, state, count=4, bucket_mb=25)
    shapes = [tuple(p.shape) for p in network().parameters()]
    return shapes, hook.last_step


def test_collectives_that_a_hook_begins_in_callbacks_are_counted() -> None:
    for shapes, last in processes(WORLD_SIZE, lambda wire: with_powersgd(wire.rank)):
        sizes = [(shape[0], torch.Size(shape).numel() // shape[0]) for shape in shapes]
        elements = [  # torch's rule: factors if they are smaller than half of the tensor
            RANK * (n + m) if 2 * RANK * (n + m) < n * m else n * m for n, m in sizes
        ]
        assert sum(elements) < sum(n * m for n, m in sizes) / 4
        assert last.payload_bytes == 4 * sum(elements)


def gathering(state: object, bucket: dist.GradBucket) -> Future[Tensor]:
    """A hook that gathers the casts of all ranks, and sums a number over them in the callback."""
    own_N = bucket.buffer().bfloat16()
    all_WN = [torch.empty_like(own_N) for _ in range(WORLD_SIZE)]
    work: Any = dist.all_gather(all_WN, own_N, async_op=True)

    def mean(future: Future[Any]) -> Tensor:
        dist.all_reduce(torch.ones(4), async_op=True)
        return torch.stack(all_WN).float().mean(0)

    result: Future[Tensor] = work.get_future().then(mean)
    return result


def with_a_gather(rank: int) -> Any:
    hook = sage.ledger(gathering)
    _, numel = steps(rank, hook, bucket_mb=25)
    return numel, hook.last_step


def test_gathers_are_counted_by_their_input() -> None:
    for numel, last in processes(WORLD_SIZE, lambda wire: with_a_gather(wire.rank)):
        assert last.payload_bytes == 2 * numel + 16
        assert last.wire_sent == ring_all_gather(2 * numel, WORLD_SIZE)[0] + 16


def in_folders(rank: int, folder: Path) -> Any:
    hook = sage.ledger(default_hooks.fp16_compress_hook)
    early = ""
    try:
        hook.record(folder / "early", workload="mine", accuracy=0.5)
    except ValueError as error:
        early = str(error)
    steps(rank, hook)
    hook.record(folder / "fp16", workload="mine", accuracy=0.5)
    hook.close()
    before = hook.total
    once_more = torch.ones(3)
    dist.all_reduce(once_more)
    return early, hook.total == before


def test_a_record_is_a_run_folder_of_the_hook(tmp_path: Path) -> None:
    for early, is_closed in processes(WORLD_SIZE, lambda wire: in_folders(wire.rank, tmp_path)):
        assert early == "the hook was not called yet: call record after a backward"
        assert is_closed
    result = json.loads((tmp_path / "fp16" / "result.json").read_text())
    assert result["reducer"] == "fp16_compress_hook"
    assert result["steps"] == 3
    assert result["payload_per_step"]["values"] == 2 * result["parameters"]


def failing(state: object, bucket: dist.GradBucket) -> Future[Tensor]:
    future: Future[Tensor] = Future()
    future.set_exception(ValueError("the hook's own"))  # type: ignore[arg-type]
    return future


def with_a_failure(rank: int) -> str:
    try:
        steps(rank, sage.ledger(failing))
    except Exception as error:
        return str(error)
    return "nothing"


def test_a_hooks_error_is_raised_by_backward() -> None:
    assert all(
        "the hook's own" in result for result in processes(WORLD_SIZE, lambda wire: with_a_failure(wire.rank))
    )


@pytest.mark.parametrize(
    ("op", "payloads", "sent"),
    [
        ("allreduce", [80, 80], [80, 80]),
        ("allgather", [80, 80], [80, 80]),
        ("alltoall", [80, 80], [40, 40]),
        ("broadcast", [80, 0], [80, 0]),
        ("gather", [0, 80], [0, 80]),
    ],
)
def test_payload_and_traffic_are_those_of_the_collective(
    op: str, payloads: list[int], sent: list[int]
) -> None:
    found = [counted(op, 80, rank, 0, WORLD_SIZE) for rank in range(WORLD_SIZE)]
    assert [payload for payload, _ in found] == payloads
    assert [out for _, (out, _) in found] == sent
    assert sum(out for _, (out, _) in found) == sum(into for _, (_, into) in found)


@pytest.mark.parametrize("wrong", [None, 5, "powerSGD"])
def test_an_object_that_is_not_a_hook_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected a function of a state and a bucket"):
        sage.ledger(wrong)


def test_the_name_is_the_hooks() -> None:
    make: Callable[[Any], HookLedger] = sage.ledger
    assert make(default_hooks.allreduce_hook).__qualname__ == "allreduce_hook"
