"""Runs of DeepSpeech: the loss on synthetic tones falls without and with compression, and is labelled."""

import json
from pathlib import Path

import pytest

from sage.cli.main import main
from sage.records.record import read_metrics


@pytest.mark.parametrize("reducer", ["exact", "sage"])
def test_the_loss_on_synthetic_tones_falls_and_they_are_labelled(tmp_path: Path, reducer: str) -> None:
    argv = f"run deepspeech-synthetic-tones --reducer {reducer} --steps 36 --epochs 12 --batch-size 5 "
    argv += "--model.hidden 48 --model.filters 4 --data.limit-train 30 --data.limit-test 8 "
    assert main([*argv.split(), "--workers-in-process", "--runs", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    losses = [line["loss"] for line in read_metrics(folder) if line["kind"] == "step"]
    epochs = [sum(losses[at : at + 3]) / 3 for at in range(0, 36, 3)]  # each over all clips
    assert epochs[-1] < 0.7 * epochs[0]
    final = json.loads((folder / "result.json").read_text())["final"]
    assert set(final) >= {"wer", "cer", "wer_per_clip", "loss"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["provenance"] == {"data": "synthetic tones, not speech"}
    assert main(["report", str(tmp_path)]) == 0
    (page,) = tmp_path.rglob("*.html")
    assert "data: synthetic tones, not speech" in page.read_text()
