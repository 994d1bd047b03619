"""Runs of GPTs: the loss falls without and with compression, and files of tokens train and are checked."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from sage.cli.main import main
from sage.records.record import read_metrics

SMALL = "--model.layers 2 --data.limit-train 9000 --data.limit-test 2000 --workers-in-process"
TINY = (
    "--model.layers 1 --model.heads 2 --model.width 8 --data.block-size 8 --data.vocabulary 32 --steps 2 "
    "--batch-size 2 --accumulate 2 --reducer topk --workers-in-process"
)


@pytest.mark.parametrize("reducer", ["exact", "sage", "exact --optimizer muon --lr 0.02 --adamw-lr 1e-3"])
def test_the_loss_of_a_gpt_on_the_help_topics_falls_from_the_logarithm_of_256(
    tmp_path: Path, reducer: str
) -> None:
    argv = f"run gpt-topics --reducer {reducer} --steps 40 --epochs 9 --warmup-steps 5 {SMALL}"
    assert main([*argv.split(), "--runs", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    first, *_ = (line["loss"] for line in read_metrics(folder) if line["kind"] == "step")
    final = json.loads((folder / "result.json").read_text())["final"]
    assert first == pytest.approx(math.log(256), abs=0.1)
    assert final["loss"] < 4.0
    assert final["bits_per_character"] == pytest.approx(final["loss"] / math.log(2))


def test_a_gpt_trains_on_files_of_tokens_and_wrong_ones_are_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAGE_DATA_DIR", str(tmp_path))
    argv = ["run", "gpt-124m-openwebtext", *TINY.split(), "--runs", str(tmp_path / "runs")]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "openwebtext/train.bin is missing: write it with prepare.py of nanoGPT" in line
    (tmp_path / "openwebtext").mkdir()
    tokens_N = np.arange(300, dtype="<u2") % 32
    for name in ("train.bin", "val.bin"):
        tokens_N.tofile(tmp_path / "openwebtext" / name)
    assert main(argv) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert set(json.loads((folder / "manifest.json").read_text())["checksums"]) == {"train.bin", "val.bin"}
    assert set(json.loads((folder / "result.json").read_text())["final"]) == {"perplexity", "loss"}
    capsys.readouterr()
    assert main([*argv, "--data.vocabulary", "31"]) == 2
    assert "has the token 31, but the vocabulary has 31 words: set" in capsys.readouterr().err
