"""Labelled texts in CSV files: a row is a class, counted from 1, and one or more columns of text.

AG News, DBpedia, Sogou, Yelp and Yahoo! Answers are published in this form: Zhang, Zhao, LeCun,
"Character-level Convolutional Networks for Text Classification", 2015, https://arxiv.org/abs/1509.01626.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from sage.data.classified_text import ClassifiedText, Tokenizer
from sage.data.fetch import DataError, sha256_of
from sage.data.whole_words import WholeWords
from sage.data.wordpiece import WordPiece, vocabulary_file, vocabulary_sum
from sage.storage import open_regular
from sage.validate import Range, shown

Tokens = Literal["wordpiece", "words"]
"""BERT's word pieces of a vocabulary file, or the whole words that the training texts have."""

Length = Annotated[int, Range(3, 512)]
Count = Annotated[int, Range(1)]

_MAX_CHARACTERS = 1 << 24


class Rows(NamedTuple):
    """How the rows of a file are read."""

    delimiter: str = ","
    separator: str = " "
    """Between the columns of text."""
    num_classes: int | None = None
    """Largest class; None: any."""


class LabelledCsv(ClassifiedText):
    """A training and a test file with labelled texts, tokenized when they are read."""

    def __init__(
        self,
        root: Path,
        train: Path,
        test: Path,
        rows: Rows,
        *,
        dataset: str,
        tokenizer: Tokens,
        vocabulary: str,
        lower_case: bool,
        length: int,
        limit_train: int | None,
        limit_test: int | None,
    ) -> None:
        """Read two files and, for word pieces, a vocabulary file in `root`.

        Args:
            root: The folder of the data sets.
            train: The training file, which exists.
            test: The test file, which exists.
            rows: How both are read.
            dataset: Name of the data set in the command that fetches the files.
            tokenizer: The tokenizer.
            vocabulary: The file of word pieces, relative to `root`.
            lower_case: Whether word pieces are those of lower-case text.
            length: Tokens of a text; the end of a longer text is dropped.
            limit_train: Train only on this number of texts, the first ones.
            limit_test: Evaluate only on this number of texts, the first ones.

        Raises:
            DataError: A file is malformed, or the vocabulary is missing or damaged.
            ValueError: A limit is above the number of texts, or a package is not installed.
        """
        read = partial(read_labelled_csv, rows=rows)
        checksums = {path.name: sha256_of(path) for path in (train, test)}
        made: Tokenizer
        if tokenizer == "words":
            made = WholeWords(text for text, _ in read(train))
        else:
            pieces = vocabulary_file(root, vocabulary, dataset=dataset)
            checksums |= vocabulary_sum(pieces)
            made = WordPiece(pieces, lower_case=lower_case)
        super().__init__(
            train=read(train),
            test=read(test),
            tokenizer=made,
            num_classes=rows.num_classes,
            length=length,
            checksums=checksums,
            limit_train=limit_train,
            limit_test=limit_test,
        )


def given_files(folder: Path, remedy: str) -> tuple[Path, Path]:
    """Return train.csv and test.csv of a folder, which the user has to put there.

    Raises:
        DataError: One of them is missing; the message says what to do.
    """
    train, test = folder / "train.csv", folder / "test.csv"
    for path in (train, test):
        if not path.is_file():
            raise DataError(f"{path} is missing: {remedy}")
    return train, test


def check_rows(paths: Iterable[Path], rows: Rows) -> None:
    """Read every row of files.

    Raises:
        DataError: A row is malformed, as in `read_labelled_csv`.
    """
    for path in paths:
        for _ in read_labelled_csv(path, rows):
            pass


def read_labelled_csv(path: Path, rows: Rows) -> Iterator[tuple[str, int]]:
    r"""Yield the text and the class, counted from 0, of each row of a UTF-8 file; empty lines are skipped.

    A field may be in double quotes; a double quote in it is doubled. A backslash is a character like others,
    so that the `\n` in some published files stays two characters.

    Raises:
        DataError: A row is malformed; the message has its line. Or there is no row, or it is not UTF-8.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CHARACTERS))
    with (
        open_regular(path) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,  # with or without a byte order mark
    ):
        reader = csv.reader(text, delimiter=rows.delimiter, strict=True)
        num_columns = None
        try:
            for row in reader:
                if row:
                    num_columns = num_columns or len(row)
                    yield _parsed(row, rows, num_columns)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, after line {reader.line_num}: not UTF-8") from error
        except (csv.Error, _Malformed) as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    if num_columns is None:
        raise DataError(f"{path} has no rows")


class _Malformed(Exception):
    pass


def _parsed(row: list[str], rows: Rows, num_columns: int) -> tuple[str, int]:
    """Return the text and the class, counted from 0, of a row.

    Raises:
        _Malformed: A column is missing or one too many, or the class is not allowed.
    """
    if len(row) < 2 or len(row) != num_columns:
        expected = f"{num_columns} as in the first row" if num_columns > 1 else "a class and a text"
        raise _Malformed(f"{len(row)} columns separated by {rows.delimiter!r}, expected {expected}")
    label = row[0].strip()
    top = rows.num_classes
    if not (label.isascii() and label.isdigit() and len(label) < 7 and 1 <= int(label) <= (top or 1 << 16)):
        allowed = f"1 to {top}" if top else "a number from 1 on"
        raise _Malformed(f"the class is {shown(label, 40)}; allowed is {allowed}, without a line of titles")
    return rows.separator.join(row[1:]), int(label) - 1
