"""The errors of predictions: each setup is predicted from others, and all errors are counted."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from prediction_errors import Row, Setup, Source, sources, summary

SETUPS = [Setup(ranks, rate) for ranks in (2, 4) for rate in ("10mbit", "100mbit", "1gbit")]


@pytest.mark.parametrize("setup", SETUPS)
def test_no_prediction_comes_from_its_own_setup(setup: Setup) -> None:
    found = list(sources(setup, SETUPS))
    assert {source.links for source in found} == {*SETUPS} - {setup}
    assert setup not in {source.computation for source in found}
    assert {source.computation.ranks for source in found} == {setup.ranks}


def test_without_another_setup_of_as_many_ranks_there_is_no_prediction() -> None:
    assert list(sources(SETUPS[0], [SETUPS[0], SETUPS[3]])) == []


def test_a_summary_has_every_error() -> None:
    source = Source(SETUPS[1], SETUPS[1])
    row = Row(
        workload="w",
        setup=SETUPS[0],
        source=source,
        reducer="exact",
        options={},
        mount="whole",
        predicted_seconds=1.0,
        band=(0.9, 1.3),
        measured_seconds=1.0,
        measured_quartiles=(1.0, 1.0),
    )
    rows = [replace(row, measured_seconds=1 / (1 + error / 100)) for error in range(-5, 6)]
    found = summary([*rows, replace(row, measured_seconds=0.5)])
    assert found["predictions"] == 12
    assert found["median"] == pytest.approx(0.03, abs=1e-3)
    assert found["ninth_decile"] == pytest.approx(0.05, abs=1e-3)
    assert found["largest"] == 1.0
    assert found["measured_within_the_band"] == 11
