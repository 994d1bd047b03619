"""Tests of `sage bench compress`: which time is measured, that rounds are independent, and the results."""
# N = elements of the flat vector, W = ranks

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sage import registry
from sage.bench import loopback_wire, repetitions
from sage.bench.compress import FIELDS
from sage.bench.loopback_wire import ENGINE, LoopbackWire, Stopwatch
from sage.bench.repetitions import Case, Input, cases_of, inputs, measure, reduce_once
from sage.bench.trace import Trace
from sage.cli.main import main
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.topk import TopK
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.reduction.reducer import Reduced, Reducer

CPU = torch.device("cpu")
N = 4096


def vector(*, settle: int = 0, rows: int = N // 1024) -> Input:
    (made,) = inputs([rows / 256], [], 0, settle, 0, CPU)
    return made


def recorded(steps: int = 6, n: int = 50) -> Trace:
    codes_SWN = torch.randn(steps, 2, n, generator=torch.Generator().manual_seed(0)).half()
    exponents_SW, lr_S = torch.full((steps, 2), -3, dtype=torch.int32), torch.ones(steps, dtype=torch.float64)
    return Trace(codes_SWN, exponents_SW, lr_S, 0, n, {"workload": "made-up"})


def spied(spec: str, seen: list[tuple[Reducer, Tensor]]) -> Case:
    """The first case of a reducer that records every mean it returns."""
    case = cases_of(spec, [0.01])[0]

    def make(**options: Any) -> Reducer:
        reducer = case.make(**options)

        def keep(_: object, __: object, reduced: Any) -> None:
            seen.append((reducer, reduced.mean_N.clone()))

        reducer.register_forward_hook(keep)
        return reducer

    return Case(case.name, make, case.options)


# The wire and the time stamps.


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replaces the clock of the time stamps; a gather takes 1000 seconds."""
    clock = Clock()
    monkeypatch.setattr(loopback_wire, "time", clock)
    gather = LoopbackWire._gather

    def slow(wire: LoopbackWire, x_S: Tensor) -> Tensor:
        clock.now += 1000
        return gather(wire, x_S)

    monkeypatch.setattr(LoopbackWire, "_gather", slow)
    return clock


def test_time_is_split_at_the_last_collective_and_excludes_the_wires_own_time(clock: Clock) -> None:
    wire = LoopbackWire(CPU)

    def work() -> str:
        clock.now += 1
        wire.gather(values=torch.ones(3))
        clock.now += 10
        wire.gather_streams(values=torch.ones(3), indices=torch.ones(2))  # two collectives, one after another
        clock.now += 100
        return "done"

    assert wire.timed(work) == ("done", 11, 100)
    assert wire.timed(work) == ("done", 11, 100)


def test_without_a_collective_all_time_is_compression(clock: Clock) -> None:
    def work() -> None:
        clock.now += 7

    assert LoopbackWire(CPU).timed(work) == (None, 7, 0)


CALLS: dict[str, Callable[[Wire, Tensor], Any]] = {
    "mean": lambda wire, x: wire.mean(x),
    "sum": lambda wire, x: wire.sum(x),
    "gather": lambda wire, x: wire.gather(values=x, indices=x.int()),
    "sum_halves": lambda wire, x: wire.sum_halves(x.half()),
    "gather_rows": lambda wire, x: wire.gather_rows(values=x, indices=x.int()),
    "gather_uneven": lambda wire, x: wire.gather_uneven(values=x, indices=x.int()),
    "gather_ragged": lambda wire, x: wire.gather_ragged(values=x, indices=x.int()),
    "gather_within": lambda wire, x: wire.gather_within(9, values=x, indices=x.int()),
    "gather_streams": lambda wire, x: wire.gather_streams(values=x, indices=x[:2].int()),
    "broadcast": lambda wire, x: wire.broadcast(x),
    "gather_to": lambda wire, x: wire.gather_to(x),
    "reduce_scatter": lambda wire, x: wire.reduce_scatter(x.unsqueeze(0)),
    "all_to_all": lambda wire, x: wire.all_to_all(x.unsqueeze(0)),
    "all_to_all_packed": lambda wire, x: wire.all_to_all_packed(
        values=x.expand(wire.world_size, -1), indices=x.int().expand(wire.world_size, -1)
    ),
    "all_to_all_others": lambda wire, x: wire.all_to_all_others(
        [x] * wire.world_size, [3] * wire.world_size, "values"
    ),
    "all_to_all_ragged": lambda wire, x: wire.all_to_all_ragged([3], values=x, indices=x.int()),
}


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", sorted(registry.names("reducers")))
def test_every_reducer_takes_a_turn_of_steps_on_a_wire_of_several_ranks(name: str, world_size: int) -> None:
    case = cases_of(name, [0.01])[0]
    reducer = case.make(**case.options)
    feedback = ErrorFeedback(reducer, Layout.of([("matrix", (64, 64))], reducer.grouping))
    wire = LoopbackWire(CPU, world_size)
    feedback.reducer.begin_epoch(0, 0.1, wire)
    for _ in range(world_size + 1):  # one step more than there are ranks
        grad_N = torch.randn(N, generator=torch.Generator().manual_seed(1))
        mean_N = feedback(grad_N, wire).mean_N
        assert mean_N.isfinite().all()


def test_every_collective_that_a_reducer_may_call_is_tested_here() -> None:
    public = {name for name, call in vars(Wire).items() if callable(call) and not name.startswith("_")}
    local = {"row_to_gather"}  # returns memory and sends nothing
    assert public - set(ENGINE) - local == set(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_a_wire_of_one_rank_returns_and_counts_the_same_as_one_simulated_rank(call: str) -> None:
    def ask(wire: Wire) -> Any:
        return CALLS[call](wire, torch.tensor([3.0, -4.0, 5.0])), wire.ledger.payload, wire.ledger.calls

    wire = LoopbackWire(CPU)
    stamps = []
    wire.watch.stamp = lambda: stamps.append("stamp")  # type: ignore[method-assign]
    answer, *booked = ask(wire)
    expected, *expected_booked = simulate(1, ask)[0]
    torch.testing.assert_close(answer, expected, rtol=0, atol=0)
    assert booked == expected_booked
    assert len(stamps) == 2


def test_another_root_sends_what_this_rank_sent_as_the_root() -> None:
    wire = LoopbackWire(CPU, world_size=2)
    unset = torch.full((2,), torch.nan)
    assert wire.broadcast(unset.clone(), root=1).tolist() == [0, 0]
    wire.broadcast(torch.tensor([3.0, -4.0]), root=0)
    assert wire.broadcast(unset.clone(), root=1).tolist() == [3, -4]


SQUARE = ("reduce_scatter", "all_to_all", "all_to_all_ragged", "broadcast", "gather_to")
"""Calls whose input has a row for each rank, or whose root is a rank."""


@pytest.mark.parametrize("call", sorted(set(CALLS) - set(SQUARE)))
def test_a_wire_of_three_equal_ranks_returns_the_same_as_three_simulated_ones(call: str) -> None:
    def ask(wire: Wire) -> Any:
        return CALLS[call](wire, torch.tensor([3.0, -4.0, 5.0]))

    answer = ask(LoopbackWire(CPU, 3))
    torch.testing.assert_close(answer, simulate(3, ask)[0], rtol=0, atol=0)


def test_a_wire_of_three_equal_ranks_exchanges_rows_as_three_simulated_ones_do() -> None:
    def ask(wire: Wire) -> Any:
        x_WN = torch.tensor([[3.0, -4.0], [5.0, 6.0], [7.0, 8.0]])
        ragged = wire.all_to_all_ragged([2, 0, 1], values=torch.tensor([1.0, 2.0, 3.0]))
        return wire.reduce_scatter(x_WN), wire.all_to_all(x_WN), ragged, wire.gather_to(x_WN[0])

    answer = ask(LoopbackWire(CPU, 3))
    torch.testing.assert_close(answer, simulate(3, ask)[0], rtol=0, atol=0)


@pytest.mark.parametrize("call", ["gather", "gather_to", "reduce_scatter", "all_to_all"])
def test_a_result_does_not_alias_its_input(call: str) -> None:
    x_N = torch.ones(3)
    answer = CALLS[call](LoopbackWire(CPU), x_N)
    (answer[0] if isinstance(answer, tuple) else answer).zero_()
    assert x_N.tolist() == [1, 1, 1]


def test_on_cuda_events_are_recorded_and_waited_for_only_at_both_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    class Event:
        """Replaces torch.cuda.Event, whose times are in milliseconds."""

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            done.append(f"record on {stream}")
            self.number = len(done)

        def elapsed_time(self, later: "Event") -> float:
            return 1000.0 * (later.number - self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("wait"))
    watch = Stopwatch(torch.device("cuda", 1))
    for _ in range(3):
        watch.stamp()
    assert watch.gaps() == [1, 1]
    assert done == ["wait", *["record on stream of cuda:1"] * 3, "wait"]


# What is measured.


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
def test_topk_sends_exactly_k_elements_with_eight_bytes_for_each(density: float) -> None:
    row, half = measure(
        vector(), [*cases_of("topk", [density]), *cases_of("topk:values=fp16", [density])], 2, 0, 0
    )
    k = int(density * N)
    assert (row.sent, row.sent_over_k, row.payload) == (k, 1.0, 8 * k)
    assert (half.sent, half.sent_over_k, half.payload) == (k, 1.0, 6 * k)
    assert row.dense == 4 * N


def test_a_reducer_without_a_density_is_measured_once_and_has_no_k() -> None:
    (case,) = cases_of("exact", [0.1, 0.01])
    (row,) = measure(vector(), [case], 2, 0, 0)
    assert (case.density, row.sent, row.sent_over_k, row.payload) == (None, None, None, 4 * N)


def test_options_follow_the_name() -> None:
    first, second = cases_of("sage:controller=sage,agree=true,density-steps=5", [0.1, 0.02])
    settings = {name: first.options[name] for name in ("controller", "agree", "density_steps", "density")}
    assert settings == {"controller": "sage", "agree": True, "density_steps": 5, "density": 0.1}
    assert (second.name, second.density) == ("sage:controller=sage,agree=true,density-steps=5", 0.02)
    (fixed,) = cases_of("topk:density=0.5", [0.1, 0.02])
    assert fixed.density == 0.5


@pytest.mark.parametrize(
    "spec", [*registry.names("reducers"), "sage:controller=sage", "sage:controller=feedback"]
)
def test_rounds_are_independent_of_each_other(spec: str) -> None:
    given = vector(settle=1)
    before = given.gradient_N.clone(), given.before[0].clone()
    seen: list[tuple[Reducer, Tensor]] = []
    (row,) = measure(given, [spied(spec, seen)], 3, 1, 0)
    assert not row.error
    assert len(seen) == 4 * 2  # rounds and warm-up, each after one untimed reduction
    assert len({id(reducer) for reducer, _ in seen}) == 4
    for _, mean_N in seen[1::2]:
        assert torch.equal(mean_N, seen[1][1])
    assert len({(each.sent, each.payload) for each in row.rounds}) == 1
    assert torch.equal(given.gradient_N, before[0])
    assert torch.equal(given.before[0], before[1])


def test_with_settle_a_reducer_has_the_residual_of_the_earlier_gradients() -> None:
    given = vector(settle=2)
    seen: list[tuple[Reducer, Tensor]] = []
    once = reduce_once(spied("topk", seen), given)
    kept_N, sent_N = torch.zeros(N), torch.zeros(N)
    for gradient_N in [*given.before, given.gradient_N]:
        kept_N += gradient_N
        at_K = kept_N.abs().topk(40).indices
        sent_N = torch.zeros(N).index_copy(0, at_K, kept_N[at_K])
        kept_N -= sent_N
    assert torch.equal(seen[-1][1], sent_N)
    assert once.payload == 8 * 40  # of the timed one only


def test_every_case_runs_once_per_round_in_an_order_drawn_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def once(case: Case, given: Input, world_size: int = 1) -> repetitions.Round:
        ran.append(case.name)
        return repetitions.Round(len(ran), 1, None, 1)

    monkeypatch.setattr(repetitions, "reduce_once", once)
    cases = [case for name in ("exact", "fp16", "bf16", "topk") for case in cases_of(name, [0.1])]
    rows = measure(vector(), cases, 5, 2, 0)
    by_round = [ran[i : i + 4] for i in range(0, len(ran), 4)]
    assert [sorted(names) for names in by_round] == [sorted(case.name for case in cases)] * 7
    assert len(set(map(tuple, by_round))) > 1
    # The warm-up rounds have left no state.
    assert {len(row.rounds) for row in rows} == {5}
    assert min(each.compress for row in rows for each in row.rounds) == 9


def test_the_spread_covers_all_rounds() -> None:
    spread = repetitions.spread([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (spread.mean, spread.least, spread.low, spread.median, spread.high) == (22, 1, 2, 3, 4)
    assert spread.std == pytest.approx(43.6, abs=0.05)
    row = repetitions.Row(
        "made up", 250_000, cases_of("exact", [])[0], [repetitions.Round(0.5, 1, None, 0)] * 2
    )
    assert row.megabytes_per_second == 2  # 10^6 bytes, which are a quarter as many elements


class Fails(TopK):
    """Raises in its third instance."""

    lives = 0

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        Fails.lives += 1
        if Fails.lives == 3:
            raise RuntimeError("no more\nof this")
        return super().forward(grad_N, residual_N, wire)


def test_a_case_that_raises_is_reported_and_the_others_are_measured() -> None:
    Fails.lives = 0
    broken, row = measure(
        vector(), [Case("fails", Fails, {"density": 0.1}), *cases_of("topk", [0.1])], 4, 0, 0
    )
    assert (broken.error, len(broken.rounds), Fails.lives) == ("RuntimeError: no more of this", 2, 3)
    assert (row.error, len(row.rounds)) == ("", 4)


# Inputs.


def test_a_made_up_vector_is_normal_of_its_size_and_the_same_for_a_seed() -> None:
    (given,) = inputs([1], [], 0, 0, 5, CPU)
    (again,) = inputs([1], [], 0, 0, 5, CPU)
    (other,) = inputs([1], [], 0, 0, 6, CPU)
    assert (given.name, given.shape, given.gradient_N.numel()) == ("N(0, 1), 1 MiB", (256, 1024), 2**18)
    assert abs(float(given.gradient_N.mean())) < 0.01
    assert abs(float(given.gradient_N.std()) - 1) < 0.01
    assert torch.equal(given.gradient_N, again.gradient_N)
    assert not torch.equal(given.gradient_N, other.gradient_N)
    (settled,) = inputs([1], [], 0, 2, 5, CPU)
    assert torch.equal(settled.gradient_N, given.gradient_N)
    drawn = [settled.gradient_N, *settled.before]
    assert len({float(x_N[0]) for x_N in drawn}) == len(drawn) == 3


@pytest.mark.parametrize(("step", "timed"), [(3, 3), (100, 5)])
def test_a_trace_gives_rank_0s_gradient_and_those_before_it(tmp_path: Path, step: int, timed: int) -> None:
    made = recorded()
    made.save(tmp_path / "trace.pt")
    (given,) = inputs([], [tmp_path / "trace.pt"], step, 2, 0, CPU)
    assert (given.name, given.shape) == (f"made-up, step {timed}", (50,))
    expected = [made.gradient(i, 0) for i in (timed - 2, timed - 1, timed)]
    assert all(map(torch.equal, [*given.before, given.gradient_N], expected))


# The command.


def cells(lines: Sequence[str], column: int) -> list[str]:
    return [re.split(r" *\| *", line)[column] for line in lines]


def test_the_command_writes_a_table_a_csv_and_a_figure_and_reports_a_failed_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(n=3000).save(tmp_path / "trace.pt")
    # At a density of 0.1 its density_high is too low, at 0.01 it is not.
    specs = ["exact", "topk", "accordion:density_high=0.05"]
    asked = ["--reducers", *specs, "--mib", "0.01", "--traces", str(tmp_path / "trace.pt")]
    asked += [
        "--densities",
        "0.1",
        "0.01",
        "--rounds",
        "2",
        "--warmup",
        "1",
        "--output",
        str(tmp_path / "a" / "b"),
    ]
    assert main(["bench", "compress", *asked]) == 1
    heading, rule, *table = capsys.readouterr().out.splitlines()
    assert {line.count("|") for line in (heading, rule, *table)} == {11}
    assert cells(table, 3) == 2 * ["`exact`", *["`topk`"] * 2, *["`accordion:density_high=0.05`"] * 2]
    assert cells(table, 2) == 2 * ["–", "0.1", "0.01", "0.1", "0.01"]
    failed = [
        i for i, cell in enumerate(cells(table, 7)) if cell.startswith("failed: ValueError: density_high")
    ]
    assert failed == [3, 8]

    lines = (tmp_path / "a" / "b.csv").read_text().splitlines()
    head = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    assert head["command"].startswith("sage bench compress --reducers exact topk")
    assert (head["torch"], head["threads"]) == (torch.__version__, "1")
    assert {"commit", "machine", "device", "native extension", "load average", "time"} <= head.keys()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("# ")))
    assert tuple(rows[0]) == FIELDS
    assert [row["reducer"] for row in rows[:5]] == [specs[0], *[specs[1]] * 2, *[specs[2]] * 2]
    assert [bool(row["error"]) for row in rows] == [i in failed for i in range(10)]
    assert {name: rows[6][name] for name in FIELDS[:10] if name != "error"} == {
        "input": "made-up, step 5",
        "elements": "3000",
        "reducer": "topk",
        "density": "0.1",
        "rounds": "2",
        "sent": "300",
        "sent_over_k": "1.0",
        "payload_bytes": "2400",
        "payload_over_dense": "0.2",
    }
    assert float(rows[6]["compress_seconds_median"]) > 0
    assert float(rows[6]["decompress_seconds_high"]) >= float(rows[6]["decompress_seconds_low"]) > 0
    figure = (tmp_path / "a" / "b.svg").read_text()
    assert all(
        result in figure for result in (*specs, "density 0.1", "density 0.01", "made-up, step 5", "failed")
    )


def test_reducers_without_a_density_have_a_figure_too(tmp_path: Path) -> None:
    asked = [
        "--reducers",
        "exact",
        "bf16",
        "--mib",
        "0.01",
        "--rounds",
        "2",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["bench", "compress", *asked]) == 0
    assert "bf16" in (tmp_path / "out.svg").read_text()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--reducers", "tpok"], "no reducer is called 'tpok'; did you mean 'topk'"),
        (["--reducers", "topk:values=fp17"], "values is 'fp17'; allowed is one of"),
        (["--reducers", "topk:fp16"], "is not OPTION=VALUE, as in topk:values=fp16"),
        (["--reducers", "topk:rank=2"], "no option of the reducer topk is called 'rank'"),
        (["--densities", "2"], "density=2.0: expected a share"),
        (["--rounds", "1"], "--rounds 1: expected 2 or more"),
        (["--mib", "1", "0"], "--mib 1 0: expected sizes above 0"),
        (["--mib"], "no input: give --mib"),
        (["--traces", __file__], "or not a trace"),
        (["--traces", "absent.pt"], "there is no file absent.pt"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_measured(
    asked: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "compress", "--mib", "0.01", *asked]) == 2
    result = capsys.readouterr()
    assert message in result.err
    assert result.out == ""


def test_settle_needs_earlier_gradients_in_the_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded().save(tmp_path / "trace.pt")
    asked = ["--traces", str(tmp_path / "trace.pt"), "--mib", "--settle", "6"]
    assert main(["bench", "compress", *asked]) == 2
    assert "--settle 6 needs as many gradients before step 5" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compress", "--device", "cuda"]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err
