"""Tests of labelled texts: CSV files, word pieces, and the batches that ranks get of them."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import examples
from hypothesis import given, settings, strategies
from pieces import PIECES, pieces_file

from sage.data.classified_text import ClassifiedText
from sage.data.fetch import DataError
from sage.data.labelled_csv import Rows, read_labelled_csv
from sage.data.whole_words import WholeWords
from sage.data.wordpiece import WordPiece, read_vocabulary

TEXTS = [("a b", 0), ("b b c", 1), ("c", 0), ("a", 2)] * 3


def classified(**options: Any) -> ClassifiedText:
    words = WholeWords(text for text, _ in TEXTS)
    made: dict[str, Any] = {
        "train": TEXTS,
        "test": TEXTS[:7],
        "tokenizer": words,
        "length": 4,
        "checksums": {},
    }
    return ClassifiedText(**made | options)


# CSV files.


def test_a_row_is_a_class_and_texts_with_quotes_doubled_and_backslashes_kept(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text('"3","a ""b"", c","d\\ne"\n\n"1","two\nlines","x"\n', encoding="utf-8-sig")
    assert list(read_labelled_csv(path, Rows(separator=" - "))) == [
        ('a "b", c - d\\ne', 2),
        ("two\nlines - x", 0),
    ]
    path.write_text("6\t标题\t内容\n")
    assert list(read_labelled_csv(path, Rows(delimiter="\t", num_classes=6))) == [("标题 内容", 5)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("class,title", "line 2: the class is 'class'; allowed is 1 to 4, without a line of titles"),
        ("5,x", "line 2: the class is '5'; allowed is 1 to 4"),
        ("0,x", "line 2: the class is '0'"),
        ("²,x", "line 2: the class is '²'"),
        ("1", "line 2: 1 columns separated by ',', expected 2 as in the first row"),
        ("1,a,b", "line 2: 3 columns separated by ',', expected 2"),
        ('1,"a" b', "line 2: ',' expected after '\"'"),
        ('1,"a', "line 2: unexpected end of data"),
        ("1,\udcff", "after line 0: not UTF-8"),
    ],
)
def test_a_malformed_row_is_refused_by_its_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(f"1,a\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(DataError) as caught:
        list(read_labelled_csv(path, Rows(num_classes=4)))
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file_and_a_wrong_delimiter_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("\n")
    with pytest.raises(DataError, match="train.csv has no rows"):
        list(read_labelled_csv(path, Rows()))
    path.write_text("1\ta\n")
    with pytest.raises(DataError, match="1 columns separated by ',', expected a class and a text"):
        list(read_labelled_csv(path, Rows()))


@settings(max_examples=examples(25))
@given(rows=strategies.lists(strategies.tuples(strategies.integers(1, 9), strategies.text()), min_size=1))
def test_rows_that_are_written_are_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "train.csv"
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    as_written = [(text.encode(errors="replace").decode(), label - 1) for label, text in rows]
    assert list(read_labelled_csv(path, Rows())) == as_written


@settings(max_examples=examples(50))
@given(content=strategies.binary(max_size=60) | strategies.text('1,"\t\n\r\0a', max_size=20).map(str.encode))
def test_any_other_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "train.csv"
    path.write_bytes(content)
    for read in (lambda: list(read_labelled_csv(path, Rows())), lambda: read_vocabulary(path)):
        said = ""
        try:
            read()
        except DataError as error:
            said = str(error)
        assert "\n" not in said


# Word pieces.


def test_a_word_is_the_longest_pieces_from_its_start(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra text is not installed")
    made = WordPiece(pieces_file(tmp_path))
    tokens = [[PIECES[index] for index in row_T] for row_T in made.ids(["unaffable ABC é-b 中b", ""], 12)]
    assert tokens[0] == [*("[CLS]", "un", "##aff", "##able", "ab", "##c", "e", "-", "b", "中", "b", "[SEP]")]
    assert tokens[1] == ["[CLS]", "[SEP]", *["[PAD]"] * 10]
    assert made.ids(["a b a b"], 4).tolist() == [[2, 5, 6, 3]]
    cased = WordPiece(pieces_file(tmp_path), lower_case=False)
    assert cased.ids(["A"], 3).tolist() == [[2, 1, 3]]


@settings(max_examples=examples(25))
@given(text=strategies.text(alphabet="abcdeABÉ中\u0301\u200d\x00\t '-[]PADCLS", max_size=40))
def test_word_pieces_are_those_of_transformers(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra text is not installed")
    path = pieces_file(tmp_path_factory.mktemp("pieces"))
    theirs = transformers.BertTokenizer(str(path))
    expected = theirs(text, truncation=True, max_length=12, padding="max_length")["input_ids"]
    assert WordPiece(path).ids([text], 12).tolist() == [expected]


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([*PIECES, "a"], "lines 6 and 20 have the same piece"),
        (PIECES[1:], "is no vocabulary of BERT: it needs [PAD] in its first line"),
        ([piece for piece in PIECES if piece != "[SEP]"], "and [UNK], [CLS], [SEP]"),
        (["z", *PIECES], "it needs [PAD] in its first line"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path, pieces: list[str], says: str) -> None:
    with pytest.raises(DataError) as caught:
        read_vocabulary(pieces_file(tmp_path, pieces))
    assert says in str(caught.value)


# Batches.


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_shares_of_the_ranks_are_disjoint_and_evaluations_cover_all_texts(world_size: int) -> None:
    data = classified()
    given: dict[str, Any] = {"world_size": world_size, "batch_size": 2}

    def train(rank: int, start: int = 0) -> list[tuple[torch.Tensor, ...]]:
        return [*data.train_batches(epoch=1, rank=rank, seed=0, start=start, **given)]

    steps = data.num_steps(**given)
    trained = torch.cat([ids_BT for rank in range(world_size) for ids_BT, _ in train(rank)])
    assert len(trained) == steps * world_size * 2 == len(TEXTS)
    assert trained.dtype == torch.int64
    assert sorted(trained.tolist()) == sorted(data.train_NT.tolist())
    assert torch.equal(train(0, start=1)[0][0], train(0)[1][0])
    shares = [batch for rank in range(world_size) for batch in data.test_batches(rank=rank, **given)]
    assert torch.equal(torch.cat([ids_BT for ids_BT, _ in shares]), data.test_NT.long())
    assert torch.equal(torch.cat([classes_B for _, classes_B in shares]), data.test_N)


def test_a_limit_keeps_the_first_texts_and_the_vocabulary() -> None:
    few = classified(limit_train=5, limit_test=1)
    assert torch.equal(few.train_NT, classified().train_NT[:5])
    assert few.facts == classified().facts == {"num_classes": 3, "vocab_size": 7}
    with pytest.raises(ValueError, match="limit_test is 8: give 1 to 7 texts, or omit it for all of them"):
        classified(limit_test=8)


def test_classes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="a text has class 3, counted from 1, and there are 2 classes"):
        classified(train=TEXTS[:3])
    with pytest.raises(DataError, match="the training texts have one class"):
        classified(train=[("a", 0)], test=[("a", 0)])
