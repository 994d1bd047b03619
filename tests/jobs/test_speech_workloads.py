"""Tests that the workloads of speech have the published settings, by `sage run --print-config`."""

import json
from pathlib import Path
from typing import Any

import pytest
from printed_config import printed_config

from sage.cli.main import main

COLUMNS = (
    *("batch_size", "epochs", "optimizer", "lr", "lr_scale", "schedule", "lr_decay", "decay_from"),
    *("momentum", "momentum_kind", "weight_decay", "decay_norms", "clip_global", "amp"),
)

# SIDCo: ahmedcs/SIDCo@ae5c34a; hclhkbu/GaussianK-SGD; SeanNaren/deepspeech.pytorch, configs/an4.yaml.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "deepspeech-an4": (
        *(20, 150, "sgd", 4e-4, 0, "decay", 0.01, 0),
        *(0.9, "none", 1e-4, False, 400, "none"),
    ),
    "deepspeech-800-an4": (
        *(4, 100, "sgd", 2e-4, 0, "decay", 0.01, 0),
        *(0.9, "heavy-ball", 1e-4, True, 400, "none"),
    ),
    "deepspeech-bidirectional-an4": (
        *(8, 70, "adam", 1.5e-4, 0, "decay", 0.0101010101, 0),  # times 0.99 per epoch
        *(0.9, "heavy-ball", 0, False, 400, "fp16"),
    ),
}

NETWORKS: dict[str, dict[str, Any]] = {
    "deepspeech-an4": {"rnn": "lstm", "hidden": 1024, "layers": 5},
    "deepspeech-800-an4": {"rnn": "lstm", "hidden": 800, "layers": 5},
    "deepspeech-bidirectional-an4": {"rnn": "lstm", "hidden": 1024, "layers": 5, "bidirectional": True},
    "deepspeech-cpu-an4": {"rnn": "lstm", "hidden": 128, "layers": 2},
}


@pytest.mark.parametrize("workload", PUBLISHED)
def test_a_workload_has_the_published_settings(capsys: pytest.CaptureFixture[str], workload: str) -> None:
    config = printed_config(capsys, workload)
    found = {name: config.get(name) for name in COLUMNS}
    assert found == dict(zip(COLUMNS, PUBLISHED[workload], strict=True))


@pytest.mark.parametrize("workload", NETWORKS)
def test_a_workload_has_the_published_network_and_clips(
    capsys: pytest.CaptureFixture[str], workload: str
) -> None:
    config = printed_config(capsys, workload)
    assert (config["task"], config["model"], config["data"]) == ("transcribe", "deepspeech", "an4")
    shown = {"bidirectional": False} | config["model_options"]
    expected = {"bidirectional": False, "lookahead": 20, "filters": 32} | NETWORKS[workload]
    assert {name: shown.get(name) for name in expected} == expected
    data = config["data_options"]
    assert (data["shortest"], data["longest"]) == (1, 15)
    assert data["augment"] is (workload != "deepspeech-cpu-an4")


def test_clips_of_an4_train_a_small_network(shared_data: Path, tmp_path: Path) -> None:
    if not (shared_data / "an4").is_dir():
        pytest.skip("no an4 under SAGE_DATA_DIR")
    pytest.importorskip("soundfile", reason="the extra speech is not installed")
    argv = "run deepspeech-an4 --reducer sage --steps 2 --batch-size 2 --model.hidden 8 --model.layers 1 "
    argv += "--model.filters 2 --data.loaders 1 --data.limit-train 8 --data.limit-test 4 --workers-in-process"
    paths = ["--data-root", str(shared_data), "--runs", str(tmp_path)]
    assert main([*argv.split(), *paths]) == 0
    (folder,) = tmp_path.iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "an4-train-samples" in manifest["checksums"]
    assert "provenance" not in manifest
    assert json.loads((folder / "result.json").read_text())["final"]["wer"] > 0
