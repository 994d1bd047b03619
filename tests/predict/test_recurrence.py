"""The recurrence over buckets: against a simulation by events, MG-WFBP's form, and the two-term model."""

import pytest
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.predict.recurrence import overlap, two_term

TIMES = st.floats(0.0, 10.0)
SCHEDULES = st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=12)
"""For each bucket, the seconds of backward since the previous one, and those of its communication."""


def running(parts: list[float]) -> list[float]:
    """Running sums."""
    return [sum(parts[: i + 1]) for i in range(len(parts))]


@settings(max_examples=examples(300))
@given(schedule=SCHEDULES)
def test_without_coding_the_recurrence_is_that_of_mg_wfbp(schedule: list[tuple[float, float]]) -> None:
    ready, comm = running([each for each, _ in schedule]), [each for _, each in schedule]
    end = 0.0
    for begin, seconds in zip(ready, comm, strict=True):
        end = max(end, begin) + seconds
    found = overlap(ready, comm, ready[-1])
    assert found.seconds == pytest.approx(end)
    assert found.exposed == pytest.approx(end - ready[-1])


@settings(max_examples=examples(300))
@given(k=st.integers(1, 20), first=st.floats(0.001, 10), comm=TIMES)
def test_equal_buckets_take_between_the_two_terms_and_the_first_bucket_more(
    k: int, first: float, comm: float
) -> None:
    backward = k * first
    found = float(overlap([first * (i + 1) for i in range(k)], [comm] * k, backward).seconds)
    bound = two_term(k, backward, comm, comm)
    assert bound <= found * (1 + 1e-12)
    assert found <= (bound + first) * (1 + 1e-12)


@settings(max_examples=examples(300))
@given(schedule=SCHEDULES)
def test_any_schedule_takes_at_least_the_two_terms_and_at_most_twice_as_long(
    schedule: list[tuple[float, float]],
) -> None:
    """With unequal buckets, the term behind backward is the communication of all buckets but the last."""
    ready, comm = running([each for each, _ in schedule]), [each for _, each in schedule]
    bound = max(ready[-1], sum(comm[:-1])) + comm[-1]
    found = float(overlap(ready, comm, ready[-1]).seconds)
    assert bound <= found + 1e-9
    assert found <= 2 * bound + 1e-9


CODED = st.lists(st.tuples(TIMES, TIMES, TIMES, TIMES), min_size=1, max_size=8)


def simulated(parts: list[tuple[float, float, float, float]], gamma: float) -> tuple[float, float]:
    """Advance backward and the reductions by events; the device does one of both at a time.

    Returns the time, and how long the device waits for communication.
    """
    ready = running([each for each, *_ in parts])
    stages = [(kind, bucket, part[kind]) for bucket, part in enumerate(parts) for kind in (1, 2, 3)]
    time, done, waited = 0.0, 0.0, 0.0
    for kind, bucket, seconds in stages:
        if kind == 1 and done < ready[bucket]:  # backward alone, until the bucket is ready
            time, done = time + ready[bucket] - done, ready[bucket]
        time += seconds
        if kind == 2:  # backward goes on, slower
            rest = ready[-1] - done
            waited += max(seconds - gamma * rest, 0.0)
            done = ready[-1] if seconds >= gamma * rest else done + seconds / gamma
    return time + ready[-1] - done, waited


@settings(max_examples=examples(200))
@given(parts=CODED, gamma=st.just(1.0) | st.floats(1, 3))
def test_with_coding_the_device_does_one_thing_at_a_time(
    parts: list[tuple[float, float, float, float]], gamma: float
) -> None:
    ready = running([each for each, *_ in parts])
    backward, encode, comm, decode = (list(each) for each in zip(*parts, strict=True))
    found = overlap(ready, comm, ready[-1], encode, decode, gamma)
    assert (float(found.seconds), float(found.exposed)) == pytest.approx(simulated(parts, gamma))
    compute = sum(backward) + sum(encode) + sum(decode)
    assert max(compute, sum(comm)) <= float(found.seconds) + 1e-9
    assert float(found.seconds) <= compute + sum(comm) + 1e-9
    if gamma == 1:
        assert float(found.exposed) == pytest.approx(max(0.0, float(found.seconds) - compute))


def test_one_bucket_that_holds_all_does_not_overlap() -> None:
    found = overlap([2.0], [3.0], 2.0, [0.5], [0.25])
    assert (float(found.seconds), float(found.exposed)) == (5.75, 3.0)
