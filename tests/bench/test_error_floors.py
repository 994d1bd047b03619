"""The measured floors of error feedback: they keep the bounds of theory, and the page has their values."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import error_feedback

FLOORS = {
    (row["memory"], float(row["rate"])): row for row in error_feedback.read("error_feedback_floors.csv")
}
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "error-feedback.md"


def floor(memory: str, rate: float) -> float:
    return float(FLOORS[memory, rate]["floor"])


def test_the_page_has_the_measured_floors() -> None:
    assert error_feedback.table(FLOORS.values()) in PAGE.read_text("utf-8")
    measured = {(row["memory"], float(row["rate"])) for row in error_feedback.read("error_feedback.csv")}
    every = {(memory, rate) for memory in error_feedback.MEMORIES for rate in error_feedback.RATES}
    assert measured == set(FLOORS) == every


def test_the_floors_keep_the_bounds_and_estimates_reach_the_optimum() -> None:
    large, small = error_feedback.RATES
    for rate in error_feedback.RATES:
        for memory in ("none", "residual"):
            assert 1e-8 < floor(memory, rate) < float(FLOORS[memory, rate]["bound"])
        predicted = float(FLOORS["residual", rate]["predicted"])
        assert predicted / 1.5 < floor("residual", rate) < 1.5 * predicted
        assert max(floor("ef21", rate), floor("econtrol", rate)) < 1e-10
    # A smaller step does not help the bare compressor; with a residual the floor falls with its square.
    assert floor("none", small) > floor("none", large) / 2
    ratio = floor("residual", large) / floor("residual", small)
    assert (large / small) ** 2 / 3 < ratio < 3 * (large / small) ** 2
