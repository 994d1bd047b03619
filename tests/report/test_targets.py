"""A run reaches a target on the grid of its evaluations, in a time that includes them."""

import json
import math
from pathlib import Path

import numpy
import pytest
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_runs import change, pretend

from sage.report.runs import Run, read_runs
from sage.report.time_to_target.targets import Reached, clock, reached


def only(runs: Path) -> Run:
    (found,), unreadable = read_runs([runs])
    assert not unreadable
    return found


def set_metrics(folder: Path, values: list[float | None]) -> None:
    """Replace the metric of each evaluation."""
    path = folder / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    remaining = iter(values)
    for record in records:
        if record["kind"] == "epoch":
            record["metrics"]["accuracy"] = next(remaining)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@settings(max_examples=examples(20), deadline=None)
@given(st.lists(st.floats(0, 1) | st.none(), min_size=4, max_size=4), st.floats(0, 1))
def test_a_target_is_reached_at_the_first_evaluation_that_is_at_least_as_good(
    tmp_path_factory: pytest.TempPathFactory, values: list[float | None], target: float
) -> None:
    runs = tmp_path_factory.mktemp("runs")
    set_metrics(pretend(runs, "exact", steps=40, steps_per_epoch=10, seconds=0.02), values)
    found = reached(only(runs), target)
    first = next((i for i, value in enumerate(values) if value is not None and value >= target), None)
    assert found is not None
    if first is None:
        assert found == Reached(math.inf, math.inf)
        return
    # Ten steps of 20 ms and an evaluation of 100 ms each.
    assert found.steps == 10 * (first + 1)
    assert found.seconds == pytest.approx((first + 1) * (10 * 0.02 + 0.1))


def test_a_metric_that_should_be_small_is_reached_from_above(tmp_path: Path) -> None:
    folder = pretend(tmp_path, "exact")
    set_metrics(folder, [90.0, 80.0, 70.0, 75.0])
    change(folder, "result.json", better="min")
    run = only(tmp_path)
    assert [getattr(reached(run, value), "steps", None) for value in (95, 80, 72, 60)] == [
        10,
        20,
        30,
        math.inf,
    ]


def test_the_rest_of_the_wall_clock_is_spread_over_the_steps(tmp_path: Path) -> None:
    folder = pretend(tmp_path, "exact", steps=40, steps_per_epoch=10, seconds=0.02)
    alone = clock(only(tmp_path))
    # 0.8 s of steps, and three of four evaluations of 0.1 s, as the result ends before the last.
    change(folder, "result.json", seconds=0.8 + 0.3 + 4.0)
    assert alone is not None
    numpy.testing.assert_allclose(alone, [0.3, 0.6, 0.9, 1.2])
    found = clock(only(tmp_path))
    assert found is not None
    numpy.testing.assert_allclose(found, alone + [1.0, 2.0, 3.0, 4.0])


def test_a_recorded_step_represents_those_that_are_not_recorded(tmp_path: Path) -> None:
    folder = pretend(tmp_path, "exact", steps=40, steps_per_epoch=10, seconds=0.02)
    whole = clock(only(tmp_path))
    path = folder / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [each for each in records if each["kind"] != "step" or each["step"] % 5 == 4]
    path.write_text("".join(json.dumps(record) + "\n" for record in kept))
    thinned = clock(only(tmp_path))
    assert whole is not None
    assert thinned is not None
    numpy.testing.assert_allclose(thinned, whole)


def test_a_run_that_diverged_missed_the_target_and_one_that_was_stopped_did_not(tmp_path: Path) -> None:
    folder = pretend(tmp_path, "exact", steps=40, stop=20)
    assert reached(only(tmp_path), 0.99) is None
    early = reached(only(tmp_path), 0.7)
    assert early is not None
    assert early.steps == 10
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "event", "event": "diverged", "step": 20}\n')
    assert reached(only(tmp_path), 0.99) == Reached(math.inf, math.inf)


def test_a_run_without_recorded_steps_has_no_times(tmp_path: Path) -> None:
    pretend(tmp_path, "exact", stop=0)
    assert clock(only(tmp_path)) is None
    assert reached(only(tmp_path), 0.5) is None
