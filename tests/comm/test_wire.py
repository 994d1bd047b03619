"""Tests of every collective on threads and on gloo processes: results, schedule guard, and time-outs."""
# W = world size

import os
import time
from collections.abc import Callable
from functools import cache
from multiprocessing import get_context
from typing import Any, Protocol

import pytest
import torch
from gloo import Group, RankEnded, processes
from torch import Tensor

from sage.comm.packing import describe, pack, unpack
from sage.comm.point_to_point import in_pairs
from sage.comm.rendezvous import local_places
from sage.comm.threads import simulate
from sage.comm.transport import GUARD_BYTES, ScheduleError, WireError
from sage.comm.wire import Wire

WORLD_SIZES = [1, 2, 3, 4]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32]


class Run(Protocol):
    """`simulate` with threads, or `processes` with gloo."""

    def __call__(self, world_size: int, work: Callable[[Wire], Any], *, guard: bool = False) -> list[Any]: ...


RUNS: dict[str, Run] = {"threads": simulate, "gloo": processes}


def ranks(wire: Wire) -> range:
    return range(wire.world_size)


def plain(x: Any) -> Any:
    """The content of x, with tensors as lists of Python numbers."""
    if isinstance(x, Tensor):
        return x.tolist()
    return [plain(item) for item in x] if isinstance(x, list | tuple) else x


# Each op with different inputs on the ranks, and its result computed by hand.


def means(wire: Wire) -> tuple[Any, Any]:
    return wire.mean(torch.tensor([wire.rank, 2.0, -1.5])), [(wire.world_size - 1) / 2, 2, -1.5]


def sums(wire: Wire) -> tuple[Any, Any]:
    seen = [wire.sum(torch.tensor([wire.rank, 1, -3], dtype=dtype)) for dtype in DTYPES]
    assert [x.dtype for x in seen] == DTYPES
    return seen, [[sum(ranks(wire)), wire.world_size, -3 * wire.world_size]] * len(DTYPES)


def sums_of_every_shape(wire: Wire) -> tuple[Any, Any]:
    seen = [wire.sum(torch.ones(shape)) for shape in ((), (0,), (2, 1), (5, 0, 2))]
    return seen, [wire.world_size, [], [[wire.world_size], [wire.world_size]], [[]] * 5]


def sums_of_a_long_vector(wire: Wire) -> tuple[Any, Any]:
    x_N = torch.arange(100_003.0)
    return wire.sum(x_N), [float(wire.world_size * i) for i in range(100_003)]


def sums_of_halves(wire: Wire) -> tuple[Any, Any]:
    # The spacing is 2: if each addition were rounded, the ones would be lost.
    largest = {torch.bfloat16: 256.0, torch.float16: 2048.0}
    given = [
        torch.full((n,), many if wire.rank == 0 else 1.0, dtype=dtype)
        for dtype, many in largest.items()
        for n in (0, 1, 2, 5, 1003)
    ]
    seen = [wire.sum_halves(x_N) for x_N in given]
    assert all(x_N is y_N for x_N, y_N in zip(seen, given, strict=True))
    more = {1: 0, 2: 0, 3: 2, 4: 4}[wire.world_size]  # of 0 to 3, ties to even
    return seen, [[many + more] * n for many in largest.values() for n in (0, 1, 2, 5, 1003)]


def sums_in_place(wire: Wire) -> tuple[Any, Any]:
    x_N = torch.ones(3)
    return [wire.sum(x_N) is x_N, wire.mean(x_N) is x_N, wire.broadcast(x_N) is x_N], [True] * 3


def sums_begun_and_waited_for(wire: Wire) -> tuple[Any, Any]:
    control_N = torch.tensor([wire.rank, 0.5], dtype=torch.float64)
    pending = wire.begin_sum(control_N)
    beside = wire.sum(torch.ones(1000)).max()
    total = [sum(ranks(wire)), wire.world_size / 2]
    return (pending.wait(), control_N, beside), [total, total, wire.world_size]


def gathers(wire: Wire) -> tuple[Any, Any]:
    values = torch.tensor([wire.rank, 0.5, -1], dtype=torch.float16)
    indices = torch.tensor([7, 2**31 - 1, wire.rank], dtype=torch.int32)
    norm = torch.tensor(float(wire.rank), dtype=torch.float64)
    codes = torch.tensor([[wire.rank], [255]], dtype=torch.uint8)
    seen = wire.gather(values=values, indices=indices, scales=norm, codes=codes)
    assert [x.dtype for x in seen] == [values.dtype, indices.dtype, norm.dtype, codes.dtype]
    expected = [
        [[r, 0.5, -1] for r in ranks(wire)],
        [[7, 2**31 - 1, r] for r in ranks(wire)],
        list(ranks(wire)),
        [[[r], [255]] for r in ranks(wire)],
    ]
    return seen, expected


def gathers_in_rows(wire: Wire) -> tuple[Any, Any]:
    seen, expected = [], []
    for n in (0, 1, 3, 40_000, 3):  # small, in place, and again in the same memory
        codes = torch.full((n,), wire.rank, dtype=torch.uint8)
        scales = torch.arange(n + wire.rank % 2, dtype=torch.float64)  # padded on every other rank
        seen += [
            x.clone() for x in wire.gather_rows({"codes": n, "scales": n + 1}, codes=codes, scales=scales)
        ]
        expected += [
            [[r] * n for r in ranks(wire)],
            [[*map(float, range(n + r % 2)), *[0.0] * (1 - r % 2)] for r in ranks(wire)],
        ]
        row_N = wire.row_to_gather("codes", n, codes).copy_(codes + 1)
        seen += [x.clone() for x in wire.gather_rows(codes=row_N)]
        expected.append([[r + 1] * n for r in ranks(wire)])
    return seen, expected


def gathers_of_nothing(wire: Wire) -> tuple[Any, Any]:
    seen = wire.gather(values=torch.empty(0), indices=torch.empty(0, 2, dtype=torch.int32))
    return [list(x.shape) for x in seen], [[wire.world_size, 0], [wire.world_size, 0, 2]]


def gathers_of_what_does_not_lie_together(wire: Wire) -> tuple[Any, Any]:
    transposed = torch.tensor([[wire.rank, 1], [2, 3]]).t()
    every_other = torch.arange(6, dtype=torch.int16)[::2]
    return (
        wire.gather(values=transposed, indices=every_other),
        [[[[r, 2], [1, 3]] for r in ranks(wire)], [[0, 2, 4]] * wire.world_size],
    )


def uneven(count: Callable[[int], int], how: str = "uneven") -> Callable[[Wire], tuple[Any, Any]]:
    """A gather of `count(rank)` fp16 values, -rank all of them, and as many int32 indices."""
    capacity = [9] if how == "within" else []

    def op(wire: Wire) -> tuple[Any, Any]:
        n = count(wire.rank)
        values = torch.full((n,), -wire.rank, dtype=torch.float16)
        indices = torch.arange(n, dtype=torch.int32) + 10 * wire.rank
        counts, seen = getattr(wire, f"gather_{how}")(*capacity, values=values, indices=indices)
        assert [x.dtype for x in seen] == [torch.float16, torch.int32]
        expected = [
            [count(r) for r in ranks(wire)],
            [-r for r in ranks(wire) for _ in range(count(r))],
            [10 * r + i for r in ranks(wire) for i in range(count(r))],
        ]
        return (counts, *seen), expected

    return op


def broadcasts_from_every_root(wire: Wire) -> tuple[Any, Any]:
    seen = [wire.broadcast(torch.tensor([[10 * wire.rank + root]]), root) for root in ranks(wire)]
    return seen, [[[11 * root]] for root in ranks(wire)]


def gathers_to_every_root(wire: Wire) -> tuple[Any, Any]:
    halves = torch.tensor([[wire.rank, 0.5], [-1, 2]], dtype=torch.float16).t()
    seen = [wire.gather_to(halves, root) for root in ranks(wire)]
    assert [list(x.shape) for x in seen] == [
        [wire.world_size if root == wire.rank else 0, 2, 2] for root in ranks(wire)
    ]
    return seen, [[[[r, -1], [0.5, 2]] for r in ranks(wire) if root == wire.rank] for root in ranks(wire)]


def reduce_scatters(wire: Wire) -> tuple[Any, Any]:
    w = wire.world_size
    x_WN = torch.tensor([[100.0 * row + wire.rank, -row] for row in range(w)])
    seen = [wire.reduce_scatter(x_WN), wire.reduce_scatter(x_WN.t().contiguous().t())]
    assert x_WN.tolist() == [[100 * row + wire.rank, -row] for row in range(w)]
    return seen, [[100 * wire.rank * w + sum(ranks(wire)), -wire.rank * w]] * 2


def all_to_alls(wire: Wire) -> tuple[Any, Any]:
    x_WN = torch.tensor([[100 * wire.rank + row, -row] for row in ranks(wire)], dtype=torch.int32)
    seen = [wire.all_to_all(x_WN), wire.all_to_all(x_WN.t().contiguous().t())]
    return seen, [[[100 * row + wire.rank, -wire.rank] for row in ranks(wire)]] * 2


def all_to_alls_of_several_parts(wire: Wire) -> tuple[Any, Any]:
    codes_W3 = torch.tensor([[50 * wire.rank + row] * 3 for row in ranks(wire)], dtype=torch.uint8)
    scales_W2 = torch.tensor([[wire.rank + 0.5, -row] for row in ranks(wire)])
    seen = wire.all_to_all_packed(codes=codes_W3, scales=scales_W2.t().contiguous().t())
    codes = [[50 * row + wire.rank] * 3 for row in ranks(wire)]
    return list(seen), [codes, [[row + 0.5, -wire.rank] for row in ranks(wire)]]


def all_to_alls_with_the_others(wire: Wire) -> tuple[Any, Any]:
    seen, expected = [], []
    for lengths in ([3, 0, 2, 3], [0, 0, 0, 0], [1000, 1000, 999, 1], [1, 2, 3, 4]):
        given = lengths[: wire.world_size]
        pieces = [torch.full((n,), 10 * wire.rank + r, dtype=torch.int32) for r, n in enumerate(given)]
        pieces[wire.rank] = pieces[wire.rank][:0]  # is not sent
        seen.append(wire.all_to_all_others(pieces, given, "values").clone())
        others = [r for r in ranks(wire) if r != wire.rank]
        expected.append([[10 * r + wire.rank] * given[wire.rank] for r in others])
    return seen, expected


def exchanges_of_nothing(wire: Wire) -> tuple[Any, Any]:
    nothing = torch.empty(wire.world_size, 0)
    seen = [wire.reduce_scatter(nothing), wire.all_to_all(nothing), wire.broadcast(torch.empty(0))]
    at_root: list[list[float]] = [[]] * (wire.world_size if wire.rank == 0 else 0)
    return [*seen, wire.gather_to(torch.empty(0))], [[], [[]] * wire.world_size, [], at_root]


def texts(wire: Wire) -> tuple[Any, Any]:
    written = [["", "é" * rank, f"rank {rank}\0"] for rank in ranks(wire)]
    seen = [wire.texts(text) for text in written[wire.rank]]
    assert [list(row) for row in zip(*seen, strict=True)] == written
    return [], []


OPS = {
    op.__name__: op
    for op in (
        means,
        sums,
        sums_of_every_shape,
        sums_of_a_long_vector,
        sums_of_halves,
        sums_in_place,
        sums_begun_and_waited_for,
        gathers,
        gathers_in_rows,
        gathers_of_nothing,
        gathers_of_what_does_not_lie_together,
        broadcasts_from_every_root,
        gathers_to_every_root,
        reduce_scatters,
        all_to_alls,
        all_to_alls_of_several_parts,
        all_to_alls_with_the_others,
        exchanges_of_nothing,
        texts,
    )
} | {
    f"gather_{how}_of_{name}": uneven(count, how)
    for how in ("uneven", "ragged", "within")
    for name, count in {
        "odd_counts": lambda rank: 2 * rank + 1,
        "odd_counts_downwards": lambda rank: 9 - 2 * rank,
        "equal_counts": lambda _: 3,
        "nothing_from_the_first": lambda rank: rank,
        "nothing_but_from_the_first": lambda rank: 5 * (rank == 0),
        "nothing_from_every_other": lambda rank: 3 * (rank % 2),
        "nothing_from_all": lambda _: 0,
    }.items()
}


@cache
def seen_by(run: str, world_size: int) -> list[dict[str, tuple[Any, Any, Any]]]:
    """By rank and op: the result, the expected result, and the ledger. The ranks start once."""

    def work(wire: Wire) -> dict[str, tuple[Any, Any, Any]]:
        seen = {}
        for name, op in OPS.items():
            before = wire.ledger.copy()
            got, expected = op(wire)
            booked = wire.ledger.since(before)
            booked.seconds = 0
            seen[name] = (plain(got), expected, booked)
        return seen

    return RUNS[run](world_size, work, guard=True)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("run", RUNS)
def test_every_op_equals_the_result_computed_by_hand(run: str, op: str, world_size: int) -> None:
    for rank, seen in enumerate(seen_by(run, world_size)):
        got, expected, _ = seen[op]
        assert got == expected, f"rank {rank}"


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_threads_and_processes_count_the_same_bytes(world_size: int) -> None:
    for threads, gloo in zip(seen_by("threads", world_size), seen_by("gloo", world_size), strict=True):
        assert {op: booked for op, (*_, booked) in threads.items()} == {
            op: booked for op, (*_, booked) in gloo.items()
        }


@pytest.mark.parametrize("run", RUNS)
def test_every_rank_gets_the_same_bits(run: str) -> None:
    def work(wire: Wire) -> list[Tensor]:
        generator = torch.Generator().manual_seed(wire.rank)
        x_WN = torch.randn(4, 1001, generator=generator)
        halves = [wire.sum_halves(x_WN.view(-1)[:4003].to(dtype)) for dtype in (torch.half, torch.bfloat16)]
        return [wire.mean(x_WN.clone()), wire.sum(x_WN.half()), *halves, wire.reduce_scatter(x_WN)]

    seen = RUNS[run](4, work)
    for *same, _ in seen:
        assert all(torch.equal(x, first) for x, first in zip(same, seen[0], strict=False))
    rows = torch.stack([scattered for *_, scattered in seen])
    torch.testing.assert_close(rows / 4, seen[0][0])
    if run == "gloo":  # those of the reduce-scatter and of the sum of halves equal those on threads
        twins = simulate(4, work)
        assert torch.equal(rows, torch.stack([scattered for *_, scattered in twins]))
        assert all(torch.equal(x, twin) for x, twin in zip(seen[0][2:4], twins[0][2:4], strict=True))


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_two_processes_round_a_sum_of_halves_once(dtype: torch.dtype) -> None:
    every_N = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)  # infinities and NaN among them
    shifts = range(0, 2**16, 997)

    def work(wire: Wire) -> Tensor:
        return torch.stack([wire.sum_halves(every_N.roll(wire.rank * shift)) for shift in shifts])

    expected = torch.stack([(every_N.float() + every_N.roll(shift).float()).to(dtype) for shift in shifts])
    for seen in processes(2, work):
        assert torch.equal(seen.isnan(), expected.isnan())
        assert torch.equal(seen.nan_to_num().view(torch.int16), expected.nan_to_num().view(torch.int16))


@pytest.mark.parametrize("ranks", [2, 3])
def test_long_messages_between_two_ranks_at_a_time_equal_those_on_threads(ranks: int) -> None:
    length = in_pairs(3)

    def work(wire: Wire) -> list[Tensor]:
        x_N = torch.randn(length // 2 + 3, generator=torch.Generator().manual_seed(wire.rank))
        shares_WN = x_N[: x_N.numel() // ranks * ranks].view(ranks, -1)
        counts = [[7, length // 4, 0], [length // 8, 0, 1], [3, 3, 3]][wire.rank][:ranks]
        ragged = wire.all_to_all_ragged(counts, values=x_N[: sum(counts)])
        sizes = [5, length // 4, 0][:ranks]
        others = wire.all_to_all_others([x_N[:n] for n in sizes], sizes, "values")
        (gathered_WN,) = wire.gather(values=x_N)
        halves = wire.sum_halves(x_N.bfloat16())
        return [wire.all_to_all(shares_WN), others.clone(), gathered_WN, halves, *(row for (row,) in ragged)]

    for gloo, threads in zip(processes(ranks, work), simulate(ranks, work), strict=True):
        assert all(torch.equal(x, twin) for x, twin in zip(gloo, threads, strict=True))


# The schedule guard.


Call = Callable[[Wire], Any]
LONG = {f"{'part' * 8}{n}": torch.ones(1) for n in range(4)}
SCHEDULES: dict[str, tuple[dict[int, Call], list[str]]] = {
    "op": (
        {0: lambda wire: wire.gather(values=torch.ones(3)), 1: lambda wire: wire.sum(torch.ones(3))},
        ["gather(values float32[3])", "sum(values float32[3])", "sum(values float32[3])"],
    ),
    "shape": (
        {0: lambda wire: wire.sum(torch.ones(2, 3)), 2: lambda wire: wire.sum(torch.ones(6))},
        ["sum(values float32[2, 3])", "sum(values float32[2, 3])", "sum(values float32[6])"],
    ),
    "dtype": (
        {0: lambda wire: wire.mean(torch.ones(3)), 1: lambda wire: wire.mean(torch.ones(3).half())},
        ["sum(values float32[3])", "sum(values float16[3])", "sum(values float16[3])"],
    ),
    "root": (
        {0: lambda wire: wire.broadcast(torch.ones(1), 0), 2: lambda wire: wire.broadcast(torch.ones(1), 1)},
        ["broadcast from 0(values float32[1])"] * 2 + ["broadcast from 1(values float32[1])"],
    ),
    "kind": (
        {
            0: lambda wire: wire.all_to_all(torch.ones(3, 1)),
            2: lambda wire: wire.all_to_all(torch.ones(3, 1), kind="indices"),
        },
        ["all_to_all(values float32[3, 1])"] * 2 + ["all_to_all(indices float32[3, 1])"],
    ),
    "a second part": (
        {
            0: lambda wire: wire.gather(values=torch.ones(1)),
            2: lambda wire: wire.gather(values=torch.ones(1), indices=torch.ones(1).int()),
        },
        ["gather(values float32[1])"] * 2 + ["gather(values float32[1], indices int32[1])"],
    ),
    "nothing to send": (
        {
            0: lambda wire: wire.gather(values=torch.ones(0)),
            2: lambda wire: wire.gather(values=torch.ones(1)),
        },
        ["gather(values float32[0])"] * 2 + ["gather(values float32[1])"],
    ),
    "an uneven part's dtype": (
        {
            0: lambda wire: wire.gather_uneven(values=torch.ones(wire.rank)),
            2: lambda wire: wire.gather_uneven(values=torch.ones(wire.rank).double()),
        },
        ["gather_uneven(values float32[*])"] * 2 + ["gather_uneven(values float64[*])"],
    ),
    "how uneven parts travel": (
        {
            0: lambda wire: wire.gather_ragged(values=torch.ones(wire.rank)),
            2: lambda wire: wire.gather_uneven(values=torch.ones(wire.rank)),
        },
        ["gather_ragged(values float32[*])"] * 2 + ["gather_uneven(values float32[*])"],
    ),
    "how much there is room for": (
        {
            0: lambda wire: wire.gather_within(3, values=torch.ones(2)),
            2: lambda wire: wire.gather_within(4, values=torch.ones(2)),
        },
        ["gather_within(values float32[3])"] * 2 + ["gather_within(values float32[4])"],
    ),
    "beside or in turn": (
        {0: lambda wire: wire.begin_sum(torch.ones(2)), 2: lambda wire: wire.sum(torch.ones(2), "control")},
        ["begin_sum(control float32[2])"] * 2 + ["sum(control float32[2])"],
    ),
    "the end of a long call": (
        {
            0: lambda wire: wire.gather(**LONG),
            2: lambda wire: wire.gather(**{**LONG, "last": torch.ones(2)}),
        },
        ["gather(partpart"] * 3,
    ),
}


@cache
def complaints(run: str, guard: bool) -> list[list[str]]:
    """Each rank's error for each schedule. The ranks start once, because the guard keeps the group intact."""

    def work(wire: Wire) -> list[str]:
        result = []
        for calls, _ in SCHEDULES.values():
            call = calls[max(rank for rank in calls if rank <= wire.rank)]
            with pytest.raises(ScheduleError) as raised:
                call(wire)
            result.append(str(raised.value))
        return result

    return RUNS[run](3, work, guard=guard)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("run", "guard"), [("threads", False), ("threads", True), ("gloo", True)])
def test_every_rank_reports_the_calls_of_all_ranks(run: str, guard: bool, schedule: str) -> None:
    _, calls = SCHEDULES[schedule]
    for result in complaints(run, guard):
        message = result[list(SCHEDULES).index(schedule)]
        assert message.startswith("the ranks' collectives differ: ")
        for rank, call in enumerate(calls):
            assert f"rank {rank} calls {call}" in message


@pytest.mark.parametrize("early", [0, 1])
def test_a_process_that_exits_early_is_a_schedule_error(early: int) -> None:
    def work(wire: Wire) -> None:
        if wire.rank != early:
            wire.sum(torch.ones(3))

    with Group(local_places(2), work, guard=True) as group:
        outcomes = dict(group.outcomes())
    for outcome in outcomes.values():
        assert isinstance(outcome, ScheduleError)
        assert f"rank {early} calls close()" in str(outcome)
        assert f"rank {1 - early} calls sum(values float32[3])" in str(outcome)


def test_the_guard_changes_no_result_and_counts_its_own_messages() -> None:
    def work(wire: Wire) -> tuple[float, dict[str, int]]:
        return wire.sum(torch.ones(1)).item(), dict(wire.ledger.payload)

    assert simulate(2, work) == [(2, {"values": 4})] * 2
    assert simulate(2, work, guard=True) == [(2, {"values": 4, "guard": GUARD_BYTES})] * 2


# The rendezvous.


def test_ranks_that_cannot_connect_name_the_missing_ranks() -> None:
    first, second = local_places(2)
    alone, other = local_places(2)
    host, _ = local_places(2)
    with (
        Group([first], lambda _: None, timeout=2) as without_second,
        Group([other], lambda _: None, timeout=2) as without_first,
        Group([host, host], lambda _: None, timeout=2) as twice,
    ):
        ((_, absent),) = without_second.outcomes()
        ((_, unreachable),) = without_first.outcomes()
        taken = [str(outcome) for _, outcome in twice.outcomes()]
    assert isinstance(absent, WireError)
    assert f"rank 0 of 2 could not join the other ranks at 127.0.0.1:{first.port} within 2 s" in str(absent)
    assert "rank 1 of 2 did not join. Check that all ranks were started" in str(absent)
    assert isinstance(unreachable, WireError)
    assert f"rank 1 of 2 could not join the other ranks at 127.0.0.1:{alone.port} within 2 s" in str(
        unreachable
    )
    assert sum("another process already has rank 0" in result for result in taken) == 1
    assert second.port == first.port


def test_a_rank_that_two_processes_claim_is_named() -> None:
    first, second = local_places(2)
    refused_one = get_context("fork").Event()

    def work(wire: Wire) -> list[str]:
        refused_one.wait(30)  # otherwise the two could end before the third process asks for its rank
        return wire.texts("here")

    with Group([first, second, second], work) as group:
        outcomes = group.outcomes()
        _, refused = next(outcomes)
        refused_one.set()
        assert [outcome for _, outcome in outcomes] == [["here", "here"]] * 2
    assert isinstance(refused, WireError)
    assert "another process already has rank 1" in str(refused)


def test_a_rank_that_two_processes_claim_while_another_is_missing_ends_them_all_before_the_time_out() -> None:
    first, second, _ = local_places(3)
    with Group([first, second, second], lambda wire: wire.texts("here"), timeout=150.0) as group:
        result = [str(outcome) for _, outcome in group.outcomes()]
    assert sum("another process already has rank 1" in text for text in result) == 1
    message = "rank 2 of 3 did not join, and two processes have rank 1: give each process its own rank"
    assert sum(message in text for text in result) == 2


def test_rank_0_ends_before_the_time_out_if_a_second_process_claims_its_rank() -> None:
    first, _ = local_places(2)
    with Group([first, first], lambda wire: wire.texts("here"), timeout=150.0) as group:
        result = [str(outcome) for _, outcome in group.outcomes()]
    assert sum("another process already has rank 0" in text for text in result) == 1
    message = "rank 1 of 2 did not join, and two processes have rank 0: give each process its own rank"
    assert sum(message in text for text in result) == 1


# The helper of the process tests.


def test_an_error_on_one_process_is_raised_here_with_its_rank() -> None:
    def work(wire: Wire) -> None:
        if wire.rank == 1:
            raise KeyError("mine")
        wire.texts("never answered")

    with pytest.raises(KeyError, match="mine") as raised:
        processes(2, work)
    (note,) = raised.value.__notes__
    assert note.startswith("on rank 1, process ")


def test_a_process_that_exits_without_an_error_is_named() -> None:
    def work(wire: Wire) -> None:
        if wire.rank == 1:
            os._exit(3)
        time.sleep(60)

    with pytest.raises(RankEnded, match="rank 1 exited with status 3"):
        processes(2, work)


# The packing of several tensors into one message.


def test_packing_and_unpacking_returns_the_input() -> None:
    parts = [torch.tensor([1.5, -2]).half(), torch.tensor([[7]]), torch.tensor(3.0), torch.ones(0, 2).int()]
    packed_S = pack(parts)
    assert packed_S.dtype == torch.uint8
    assert packed_S.numel() == 2 * 2 + 8 + 4
    back = unpack(torch.stack([packed_S, packed_S]), [(part.dtype, part.shape) for part in parts])
    for part, both in zip(parts, back, strict=True):
        assert both.dtype == part.dtype
        assert torch.equal(both, torch.stack([part, part]))


def test_a_call_is_described_by_op_kinds_dtypes_and_shapes() -> None:
    call = describe(
        "gather", values=torch.ones(3).half(), scales=torch.ones(()), codes=torch.ones(2, 3).byte()
    )
    assert call == "gather(values float16[3], scales float32[], codes uint8[2, 3])"
    for op in ("gather_uneven", "gather_ragged"):
        assert describe(op, values=torch.ones(3)) == f"{op}(values float32[*])"
