"""Tests that runs of convex workloads come close to the optimum, under exact and under compression."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits, make_classification
from sklearn.linear_model import LogisticRegression

from sage.config import load
from sage.storage import RESULT, read_json
from sage.train import run

# N = samples, F = features

Made = tuple[NDArray[np.float64], NDArray[Any]]
"""Made-up features x_NF and labels y_N; a label that is true is 1, the others are -1."""


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


def madelon() -> Made:
    """Made-up data of madelon's shape, by scikit-learn's form of the algorithm that generated madelon."""
    x_NF, y_N = make_classification(
        n_samples=2000,
        n_features=500,
        n_informative=5,
        n_redundant=15,
        n_clusters_per_class=16,
        random_state=0,
    )
    return np.rint(480 + 40 * x_NF / x_NF.std(0)), np.asarray(y_N)


def gisette() -> Made:
    """Made-up data as gisette's: scikit-learn's digits 4 and 9, products of pixels, and as many probes.

    The probes are the same columns, each in an order of its own. As in LIBSVM's file, a feature has the range
    [-1, 1] and most values are -1. There are 361 samples instead of 6,000: a file of 6,000 would have 180 MB.
    """
    generator = np.random.default_rng(0)
    x_NF, y_N = load_digits(return_X_y=True)
    kept_N = np.isin(y_N, (4, 9))
    x_NF, y_N = x_NF[kept_N] / 16, y_N[kept_N]
    x_NF = x_NF[:, x_NF.std(0) > 0]
    one, other = generator.integers(x_NF.shape[1], size=(2, 2500 - x_NF.shape[1]))
    x_NF = np.column_stack((x_NF, x_NF[:, one] * x_NF[:, other]))
    x_NF = np.column_stack((x_NF, generator.permuted(x_NF, axis=0)))
    return np.round(2 * x_NF / np.maximum(x_NF.max(0), 1e-9) - 1, 3), y_N == 9


MADELON = (madelon, 2.0, {"world_size": 1, "batch_size": 256}, 0.1)
"""14 steps of 256 samples; the gap is 0.69 - 0.31 at the start."""

GISETTE = (gisette, 100.0, {"batch_size": 16, "data_options": {"name": "made"}}, 0.01)
"""1,100 steps of 32 samples, where the workload takes 2,300; the gap is 0.69 - 0.002 at the start."""


@pytest.mark.parametrize(
    ("made", "epochs", "options", "gap", "reducer"),
    [
        pytest.param(*MADELON, "exact", id="madelon-exact"),
        pytest.param(*MADELON, "sage", id="madelon-sage", marks=pytest.mark.thorough),
        pytest.param(*GISETTE, "exact", id="gisette-exact", marks=pytest.mark.thorough),
        pytest.param(*GISETTE, "sage", id="gisette-sage", marks=pytest.mark.thorough),
    ],
)
def test_the_gap_falls_on_made_up_data_like_those_of_a_larger_set(
    tmp_path: Path, made: Callable[[], Made], epochs: float, options: dict[str, Any], gap: float, reducer: str
) -> None:
    x_NF, y_N = made()
    (tmp_path / "libsvm").mkdir()
    with (tmp_path / "libsvm" / options.get("data_options", {}).get("name", made.__name__)).open("w") as file:
        for x_F, y in zip(x_NF, y_N, strict=True):
            pairs = " ".join(f"{at}:{value:g}" for at, value in enumerate(x_F.tolist(), start=1) if value)
            file.write(f"{'+1' if y else '-1'} {pairs}\n")
    end = final(
        tmp_path / "runs",
        f"logistic-{made.__name__}",
        reducer=reducer,
        data_root=str(tmp_path),
        epochs=epochs,
        **options,
    )
    assert 0 <= end["gap"] < gap
    if made is madelon:
        x_NF = (x_NF - x_NF.mean(0)) / x_NF.std(0)
    # The regulariser is 1/N, so that scikit-learn's objective is N times ours.
    weights_F = LogisticRegression(fit_intercept=False, tol=1e-8, max_iter=10_000).fit(x_NF, y_N).coef_[0]
    margin_N = np.where(y_N, 1, -1) * (x_NF @ weights_F)
    theirs = np.logaddexp(0, -margin_N).mean() + weights_F @ weights_F / (2 * len(y_N))
    assert end["loss"] - end["gap"] == pytest.approx(theirs, abs=1e-6)
