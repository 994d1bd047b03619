"""Tests of the phases of a step: each second is counted once, and only in a profiling run."""

import contextlib
import threading

import pytest
import torch

from sage import timing
from sage.timing import Phases, phase


class Hands:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(timing, "time", hands)
    return hands


def test_time_in_an_inner_phase_does_not_count_for_the_outer_one(hands: Hands) -> None:
    phases = Phases(torch.device("cpu"))
    start = hands.now
    with phases.running():
        with phase("backward"):
            hands.now += 1
            with phase("select"):
                hands.now += 2
                with phase("communicate"):
                    hands.now += 4
                hands.now += 8
            with phase("communicate"):
                hands.now += 16
            hands.now += 32
        with phase("update"):
            hands.now += 64
    seconds = phases.take()
    assert seconds == {"backward": 33, "select": 10, "communicate": 20, "update": 64}
    assert sum(seconds.values()) == hands.now - start


def test_time_outside_every_phase_is_not_counted(hands: Hands) -> None:
    phases = Phases(torch.device("cpu"))
    with phases.running():
        hands.now += 1
        with phase("forward"):
            hands.now += 2
        hands.now += 4
        with phase("forward"):
            hands.now += 8
    assert phases.take() == {"forward": 10}


def test_take_resets_the_times(hands: Hands) -> None:
    phases = Phases(torch.device("cpu"))
    with phases.running(), phase("forward"):
        hands.now += 1
    phases.take()
    assert phases.take() == {}


def test_a_phase_ends_when_its_block_raises(hands: Hands) -> None:
    phases = Phases(torch.device("cpu"))
    with phases.running():
        with contextlib.suppress(KeyError), phase("forward"):
            hands.now += 1
            raise KeyError
        hands.now += 2
        with phase("backward"):
            hands.now += 4
    assert phases.take() == {"forward": 1, "backward": 4}


def test_nothing_is_timed_outside_of_a_profiling_run(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = Phases(torch.device("cpu"))
    with phases.running():
        pass
    monkeypatch.setattr(hands, "perf_counter", lambda: pytest.fail("the clock was read"))
    with phase("forward"):
        pass
    assert phases.take() == {}


def test_phases_are_timed_separately_for_each_thread(hands: Hands) -> None:
    def other() -> None:
        with phase("elsewhere"):
            hands.now += 1

    phases = Phases(torch.device("cpu"))
    with phases.running(), phase("here"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert phases.take() == {"here": 1}
