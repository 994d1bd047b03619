"""Runs on embedded data: the loss falls, without and with compression.

test_convex.py has the convex problems, test_gpt_run.py GPTs, test_imagenet_run.py the networks for ImageNet.
"""

import json
import math
from pathlib import Path

import pytest

from sage.cli.main import main
from sage.records.record import read_metrics


def train(runs: Path, argv: str, reducer: str) -> tuple[list[float], dict[str, float]]:
    """Return the loss of each step and the metrics at the end of a run whose two ranks are threads."""
    argv = f"run {argv} --reducer {reducer} --workers-in-process --runs"
    assert main([*argv.split(), str(runs)]) == 0
    (folder,) = runs.iterdir()
    losses = [line["loss"] for line in read_metrics(folder) if line["kind"] == "step"]
    final: dict[str, float] = json.loads((folder / "result.json").read_text())["final"]
    return losses, final


@pytest.mark.parametrize("reducer", ["exact", "sage"])
def test_the_loss_of_a_classifier_of_digits_falls_from_the_logarithm_of_10(
    tmp_path: Path, reducer: str
) -> None:
    losses, final = train(tmp_path, "digits-ff --steps 25", reducer)
    assert losses[0] == pytest.approx(math.log(10), abs=0.1)
    assert final["loss"] < 1.5
    assert final["accuracy"] > 0.7


@pytest.mark.parametrize("reducer", ["exact", "sage --density 0.1"])
def test_the_loss_of_an_lstm_with_carried_memory_falls_on_the_help_topics(
    tmp_path: Path, reducer: str
) -> None:
    limits = "--data.limit-train 20000 --data.limit-test 1000"
    losses, final = train(tmp_path, f"lstm-topics --steps 30 {limits}", reducer)
    assert final["loss"] < losses[0] - 1
    assert final["perplexity"] == pytest.approx(math.exp(final["loss"]))


@pytest.mark.parametrize("reducer", ["exact", "sage"])
def test_the_loss_of_a_recommender_falls_from_the_logarithm_of_2(tmp_path: Path, reducer: str) -> None:
    losses, final = train(tmp_path, "ncf-imports --steps 40", reducer)
    assert losses[0] == pytest.approx(math.log(2), abs=0.01)
    assert sum(losses[-5:]) / 5 < 0.5
    assert final["hit_rate"] > 0.2  # 10 / 101 at random
