"""Runs of DenseNet on the embedded digits: the loss falls without and with compression."""

from pathlib import Path

import pytest

from sage.cli.main import main
from sage.records.record import read_metrics


@pytest.mark.parametrize("reducer", ["exact", "sage", "powersgd"])
def test_the_loss_on_digits_falls(tmp_path: Path, reducer: str) -> None:
    argv = f"run densenet-digits --reducer {reducer} --steps 20 --workers-in-process --data.limit-test 32"
    assert main([*argv.split(), "--runs", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    losses = [line["loss"] for line in read_metrics(folder) if line["kind"] == "step"]
    assert len(losses) == 20
    assert 2 < losses[0] < 3
    assert sum(losses[-3:]) / 3 < 0.7 * losses[0]
