"""Tests of the phases of a step: each second is counted once, and only in a profiling run."""

import contextlib
import threading

import pytest
import torch

from sage import timing
from sage.timing import Phases, phase


class ManualClock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def manual_clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    manual_clock = ManualClock()
    monkeypatch.setattr(timing, "time", manual_clock)
    return manual_clock


def test_time_in_an_inner_phase_does_not_count_for_the_outer_one(manual_clock: ManualClock) -> None:
    phases = Phases(torch.device("cpu"))
    start = manual_clock.now
    with phases.running():
        with phase("backward"):
            manual_clock.now += 1
            with phase("select"):
                manual_clock.now += 2
                with phase("communicate"):
                    manual_clock.now += 4
                manual_clock.now += 8
            with phase("communicate"):
                manual_clock.now += 16
            manual_clock.now += 32
        with phase("update"):
            manual_clock.now += 64
    seconds = phases.take()
    assert seconds == {"backward": 33, "select": 10, "communicate": 20, "update": 64}
    assert sum(seconds.values()) == manual_clock.now - start


def test_time_outside_every_phase_is_not_counted(manual_clock: ManualClock) -> None:
    phases = Phases(torch.device("cpu"))
    with phases.running():
        manual_clock.now += 1
        with phase("forward"):
            manual_clock.now += 2
        manual_clock.now += 4
        with phase("forward"):
            manual_clock.now += 8
    assert phases.take() == {"forward": 10}


def test_take_resets_the_times(manual_clock: ManualClock) -> None:
    phases = Phases(torch.device("cpu"))
    with phases.running(), phase("forward"):
        manual_clock.now += 1
    phases.take()
    assert phases.take() == {}


def test_a_phase_ends_when_its_block_raises(manual_clock: ManualClock) -> None:
    phases = Phases(torch.device("cpu"))
    with phases.running():
        with contextlib.suppress(KeyError), phase("forward"):
            manual_clock.now += 1
            raise KeyError
        manual_clock.now += 2
        with phase("backward"):
            manual_clock.now += 4
    assert phases.take() == {"forward": 1, "backward": 4}


def test_nothing_is_timed_outside_of_a_profiling_run(
    manual_clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = Phases(torch.device("cpu"))
    with phases.running():
        pass
    monkeypatch.setattr(manual_clock, "perf_counter", lambda: pytest.fail("the clock was read"))
    with phase("forward"):
        pass
    assert phases.take() == {}


def test_phases_are_timed_separately_for_each_thread(manual_clock: ManualClock) -> None:
    def other() -> None:
        with phase("elsewhere"):
            manual_clock.now += 1

    phases = Phases(torch.device("cpu"))
    with phases.running(), phase("here"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert phases.take() == {"here": 1}
