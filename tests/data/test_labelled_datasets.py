"""Tests of the data sets of labelled texts: AG News, Sogou News and CSV files of the user."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from pieces import PIECES, pieces_file

from sage.cli.main import main
from sage.data.fetch import DataError
from sage.data.labelled_csv import Rows, read_labelled_csv
from sage.data.wordpiece import ENGLISH, PUBLISHED
from sage.datasets.ag_news import AGNews
from sage.datasets.labelled_csv import Labelled
from sage.datasets.sogou import Sogou

# AG News.


def own_ag_news(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the published files, which are fetched from a folder: four rows to train on and two to test."""
    source = root / "source"
    source.mkdir(parents=True)
    (source / "train.csv").write_text("".join(f'"{label}","a b","unaffable"\n' for label in range(1, 5)))
    (source / "test.csv").write_text('"1","a","b"\n"4","ab","c"\n')
    pieces = pieces_file(source)
    sums = {name: hashlib.md5((source / name).read_bytes()).hexdigest() for name in AGNews.md5}
    monkeypatch.setattr(AGNews, "url", f"{source.as_uri()}/")
    monkeypatch.setattr(AGNews, "md5", sums)
    sha256 = hashlib.sha256(pieces.read_bytes()).hexdigest()
    monkeypatch.setitem(
        PUBLISHED, ENGLISH, PUBLISHED[ENGLISH]._replace(urls=(pieces.as_uri(),), sha256=sha256)
    )
    return source


def test_ag_news_is_fetched_verified_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers", reason="the extra text is not installed")
    source = own_ag_news(tmp_path, monkeypatch)
    root = tmp_path / "data"
    with pytest.raises(DataError, match=r"train.csv is missing: run `sage data prepare ag_news`"):
        AGNews(root)
    for _ in range(2):  # the second call finds all files
        assert main(["data", "prepare", "ag_news", str(root)]) == 0
        shutil.rmtree(source, ignore_errors=True)
    data = AGNews(root, length=8)
    assert data.facts == {"num_classes": 4, "vocab_size": len(PIECES)}
    assert data.train_NT[0].tolist() == [2, 5, 6, 12, 15, 16, 17, 3]  # a b - unaffable
    assert set(data.checksums) == {"train.csv", "test.csv", "vocab.txt"}
    assert not hasattr(data, "provenance")
    (root / ENGLISH).write_text("[PAD]\n")
    with pytest.raises(DataError, match=r"vocab.txt is damaged, .*: run `sage data prepare ag_news`"):
        AGNews(root)
    with pytest.raises(DataError, match=r"mine.txt is missing: set vocabulary to a file with one word piece"):
        AGNews(root, vocabulary="mine.txt")
    assert AGNews(root, tokenizer="words", length=4).facts["vocab_size"] == 8
    (root / "ag_news_csv" / "train.csv").write_text('"1","a","b"\n')
    assert main(["run", "bert-tiny-ag-news", "--workers-in-process", "--data-root", str(root)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train.csv is damaged, its md5 is " in line
    part = AGNews(root, excerpt=True, tokenizer="words")
    assert part.provenance == "an excerpt of AG News: 1 rows in train.csv, not the official 120,000"


def test_the_official_test_file_has_its_classes_and_the_pieces_of_transformers(shared_data: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra text is not installed")
    if not all((shared_data / folder).is_dir() for folder in ("ag_news_csv", "bert-vocab")):
        pytest.skip("no ag_news_csv and bert-vocab under SAGE_DATA_DIR")
    data = AGNews(shared_data, excerpt=True, limit_train=8, length=64)
    assert data.test_N.bincount().tolist() == [1900] * 4
    assert data.facts["vocab_size"] == 30_522
    rows = [*read_labelled_csv(shared_data / "ag_news_csv" / "test.csv", Rows(separator=" - "))]
    theirs = transformers.BertTokenizer(str(shared_data / ENGLISH))
    texts = [text for text, _ in rows[:200]]
    expected = theirs(texts, truncation=True, max_length=64, padding="max_length", return_tensors="pt")
    assert torch.equal(data.test_NT[:200].long(), expected["input_ids"])


# Files of the user.


def test_sogou_is_read_in_both_forms_and_prepared_without_its_files_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers", reason="the extra text is not installed")
    assert main(["data", "prepare", "sogou", str(tmp_path)]) == 2
    assert "Sogou_data/train.csv is missing: copy it there; its licence" in capsys.readouterr().err
    pieces = pieces_file(tmp_path / "source")
    sha256 = hashlib.sha256(pieces.read_bytes()).hexdigest()
    for name, known in [*PUBLISHED.items()]:
        monkeypatch.setitem(PUBLISHED, name, known._replace(urls=(pieces.as_uri(),), sha256=sha256))
    chinese, pinyin = tmp_path / "Sogou_data", tmp_path / "sogou_news_csv"
    for folder, text in ((chinese, '6\t中\tA\n1\tb\t"b\tb"\n'), (pinyin, '"5","a","b"\n"1","zh ong","e"\n')):
        folder.mkdir()
        for name in ("train.csv", "test.csv"):
            (folder / name).write_text(text, encoding="utf-8-sig")
    assert main(["data", "prepare", "sogou", str(tmp_path)]) == 0
    data = Sogou(tmp_path, length=6)
    assert data.facts == {"num_classes": 6, "vocab_size": len(PIECES)}
    assert data.train_NT.tolist() == [[2, 14, 5, 3, 0, 0], [2, 6, 6, 6, 3, 0]]
    assert data.train_N.tolist() == [5, 0]
    assert not hasattr(data, "provenance")
    assert main(["data", "prepare", "sogou", "--form", "pinyin", str(tmp_path)]) == 2
    assert "sogou_news_csv/train.csv is not the published file: its sha256 is" in capsys.readouterr().err
    data = Sogou(tmp_path, form="pinyin", tokenizer="words", limit_train=1, limit_test=1)
    assert data.facts["num_classes"] == 5
    assert data.provenance == "Sogou News in pinyin, but not the published files"


def test_labelled_files_of_any_form_are_read_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"dbpedia_csv/train.csv is missing: copy it there, or set --data"):
        Labelled(tmp_path)
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("1\ta b\tc\td\n2\ta\tb\tc\n")
    made = Labelled(tmp_path, folder=".", delimiter="tab", separator=" / ", tokenizer="words", length=9)
    assert made.vocabulary[4:] == ["/", "a", "b", "c"]
    assert made.train_NT[0].tolist() == [2, 5, 6, 4, 7, 4, 1, 3, 0]
    assert made.facts["num_classes"] == 2
    assert Labelled(tmp_path, folder=".", delimiter="tab", tokenizer="words", num_classes=3).facts == {
        "num_classes": 3,
        "vocab_size": 7,
    }
    pieces = str(pieces_file(tmp_path / "mine"))
    argv = ["data", "prepare", "labelled_csv", str(tmp_path), "--folder", ".", "--vocabulary", pieces]
    assert main([*argv, "--delimiter", "tab"]) == 0
    assert main(argv) == 2
    assert "train.csv, line 1: 1 columns separated by ','" in capsys.readouterr().err
