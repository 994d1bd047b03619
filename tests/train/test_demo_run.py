"""Tests of runs with DeMo and Dion, whose ranks exchange what they step with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import CONFIG, EXCHANGES, with_ranks
from torch import Tensor

from sage.optim import DeMo, Dion
from sage.records.record import read_metrics
from sage.storage import write_json
from sage.train.loop import Training

DEMO: dict[str, Any] = {**EXCHANGES, "optimizer": "demo", "demo_k": 2, "demo_edge": 8, "lr": 0.01}
DION: dict[str, Any] = {**EXCHANGES, "optimizer": "dion", "rank_fraction": 0.25, "lr": 0.01}


@pytest.mark.parametrize("options", [DEMO, DION], ids=["demo", "dion"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_run_records_the_bytes_of_the_optimiser_and_its_replicas_are_equal(
    tmp_path: Path, world_size: int, options: dict[str, Any]
) -> None:
    def train(training: Training) -> dict[str, int]:
        assert training.run()
        assert isinstance(training.exchanging, DeMo | Dion)
        return training.exchanging.payload()

    config = replace(CONFIG, **options, world_size=world_size, steps=6, weight_decay=0.1, check_replicas=1)
    (payload, *_) = with_ranks(config, tmp_path, train)
    steps = [each for each in read_metrics(tmp_path) if each["kind"] == "step"]
    assert [{kind: each["bytes"][kind] for kind in payload} for each in steps] == [payload] * 6
    assert all(0 < each["density_had"] < 1 for each in steps)


@pytest.mark.parametrize(("options", "name"), [(DEMO, "delta"), (DION, "momentum")], ids=["demo", "dion"])
def test_other_numbers_of_ranks_continue_with_the_mean_of_the_momenta(
    tmp_path: Path, options: dict[str, Any], name: str
) -> None:
    def train(training: Training) -> Tensor:
        assert training.run()
        assert training.exchanging is not None
        return training.exchanging.own[name].clone()

    def resume(training: Training) -> tuple[str, Tensor]:
        source = training.resume()
        assert training.exchanging is not None
        return source, training.exchanging.own[name].clone()

    config = replace(CONFIG, **options, world_size=3, epochs=1.0)
    (tmp_path / "before").mkdir()
    write_json(tmp_path / "before" / "config.json", config.to_dict())
    left = with_ranks(config, tmp_path / "before", train)
    assert not torch.equal(left[0], left[1])
    others = replace(CONFIG, **options, world_size=2, continue_from=tmp_path / "before")
    for source, momentum_N in with_ranks(others, tmp_path / "now", resume):
        assert "the mean of what the optimiser keeps for each rank is this run's" in source
        torch.testing.assert_close(momentum_N, torch.stack(left).mean(0))
