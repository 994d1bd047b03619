"""Tests that runs of convex workloads come close to the optimum, under exact and under compression."""

from pathlib import Path
from typing import Any

import numpy as np
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
@pytest.mark.parametrize("workload", ["logistic-a9a", "logistic-mushrooms", "logistic-w8a"])
@pytest.mark.parametrize("reducer", ["exact", "sage"])
def test_a_run_on_a_published_data_set_ends_within_a_ten_thousandth_of_the_optimum(
    tmp_path: Path, shared_data: Path, workload: str, reducer: str
) -> None:
    assert 0 <= final(tmp_path, workload, reducer=reducer, data_root=str(shared_data))["gap"] < 1e-4


@pytest.mark.parametrize(
    ("name", "num_samples", "num_features", "share"),
    [("madelon", 2000, 500, 0.6), pytest.param("gisette", 6000, 5000, 0.98, marks=pytest.mark.thorough)],
)
def test_the_gap_falls_on_made_up_data_of_the_shape_of_a_larger_set(
    tmp_path: Path, name: str, num_samples: int, num_features: int, share: float
) -> None:
    generator = np.random.default_rng(0)
    direction_F = generator.normal(size=num_features)
    (tmp_path / "libsvm").mkdir()
    with (tmp_path / "libsvm" / name).open("w") as file:
        for _ in range(num_samples):
            if name == "madelon":  # integers around 480, all present
                at_K, value_K = np.arange(num_features), generator.integers(380, 580, num_features)
                signal = float(direction_F @ (value_K - 480))
            else:  # within [-1, 1]; few are present, which keeps the file small and the gap falling slowly
                at_K = np.sort(generator.choice(200, 60, replace=False))
                value_K = generator.choice([-1, 1], 60)
                signal = float(direction_F[at_K] @ value_K)
            pairs = " ".join(f"{at + 1}:{value}" for at, value in zip(at_K, value_K, strict=True))
            file.write(f"{'+1' if signal > 0 else '-1'} {pairs}\n")
    end = final(tmp_path / "runs", f"logistic-{name}", reducer="exact", data_root=str(tmp_path), epochs=10.0)
    optimum = end["loss"] - end["gap"]
    assert 0 <= end["gap"] < share * (np.log(2) - optimum)
