"""Tests that runs of convex workloads come close to the optimum, under exact and under compression."""

from pathlib import Path
from typing import Any

import pytest

from sage.config import load
from sage.storage import RESULT, read_json
from sage.train import run


def final(runs: Path, workload: str, **overrides: Any) -> dict[str, float]:
    """The metrics at the end of a run whose ranks are threads."""
    config = load(workload, overrides={"runs": str(runs), "workers_in_process": True, **overrides})
    assert run.main(config) == 0
    (result,) = runs.glob(f"{workload}-{config.reducer}-*/result.json")
    metrics: dict[str, float] = read_json(result, RESULT)["final"]
    return metrics


@pytest.mark.parametrize("reducer", ["exact", "sage"])
def test_the_gap_on_breast_cancer_falls(tmp_path: Path, reducer: str) -> None:
    end = final(tmp_path, "logistic-breast-cancer", reducer=reducer, epochs=8.0)
    assert 0 <= end["gap"] < 0.02  # from ln 2 - 0.066 = 0.627
    assert end["accuracy"] > 0.97


@pytest.mark.thorough
@pytest.mark.parametrize("reducer", ["exact", "sage"])
def test_a_run_on_a9a_ends_within_a_ten_thousandth_of_the_optimum(
    tmp_path: Path, shared_data: Path, reducer: str
) -> None:
    assert 0 <= final(tmp_path, "logistic-a9a", reducer=reducer, data_root=str(shared_data))["gap"] < 1e-4
