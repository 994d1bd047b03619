"""Tests of the time of a reduction: encoding, decoding, and that no collective is in either."""

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call
from torch import Tensor

from sage.bench.loopback_wire import LoopbackWire
from sage.comm import transport
from sage.comm.wire import Wire
from sage.mount import flat as flats
from sage.mount import reduction_seconds
from sage.mount.flat import Flat
from sage.mount.reduction_seconds import ReductionSeconds, fields_of_sum
from sage.records.record import read_metrics
from sage.reduction.reducer import Reduced, Reducer


class Clock:
    """A clock that the test advances."""

    now = 5.0

    def perf_counter(self) -> float:
        return self.now


class Slow(Reducer):
    """Takes 1 second, a collective of 10, 100, a collective of 10, and 1000."""

    clock: Clock
    collectives = 2

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        for spent in (1, 100)[: self.collectives]:
            self.clock.now += spent
            wire.gather(values=grad_N[:1])
        self.clock.now += 1000
        return Reduced(grad_N)


def reduced(monkeypatch: pytest.MonkeyPatch, collectives: int) -> ReductionSeconds | None:
    clock = Clock()
    for module in (transport, flats, reduction_seconds):
        monkeypatch.setattr(module, "time", clock)
    gather = LoopbackWire._gather

    def slow(wire: LoopbackWire, x_S: Tensor) -> Tensor:
        clock.now += 10
        return gather(wire, x_S)

    monkeypatch.setattr(LoopbackWire, "_gather", slow)
    reducer = Slow()
    reducer.clock, reducer.collectives = clock, collectives
    made = Flat([("w", (4,))], reducer, dtype=torch.float32, device=torch.device("cpu"), min_compress=0)
    wire = LoopbackWire(torch.device("cpu"))
    wire.gather(values=torch.ones(1))  # a collective before the reduction is not part of it
    clock.now += 7
    made(wire)
    return made.seconds


def test_encoding_ends_at_the_last_collective_and_decoding_starts_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert reduced(monkeypatch, 2) == ReductionSeconds(101, 1000)


def test_without_a_collective_all_is_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reduced(monkeypatch, 0) == ReductionSeconds(1000, 0)


def test_a_step_has_the_sum_of_its_reductions_unless_one_was_not_timed() -> None:
    one, other = ReductionSeconds(1, 10), ReductionSeconds(2, 20)
    assert fields_of_sum([one, other]) == {"encode_seconds": 3, "decode_seconds": 30}
    assert fields_of_sum([one, None]) == {}
    assert fields_of_sum([]) == {}


def test_every_step_of_a_run_records_both_times_within_its_own_seconds(tmp_path: Path) -> None:
    options = "--reducer topk --steps 3 --batch-size 16 --workers-in-process --log-every 1"
    assert call("run", "digits-ff", *options.split(), "--runs", str(tmp_path)) == 0
    (folder,) = (path.parent for path in tmp_path.rglob("metrics.jsonl"))
    steps: list[dict[str, Any]] = [each for each in read_metrics(folder) if each["kind"] == "step"]
    assert len(steps) == 3
    for step in steps:
        assert step["encode_seconds"] > 0
        assert step["decode_seconds"] > 0
        assert step["encode_seconds"] + step["decode_seconds"] < step["seconds"]
