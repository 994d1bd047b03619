"""Labelled CSV: texts of yours in train.csv and test.csv, such as DBpedia's, with their class first."""

from pathlib import Path
from typing import Literal

from sage.data.labelled_csv import Count, LabelledCsv, Length, Rows, Tokens, check_rows, given_files
from sage.data.wordpiece import ENGLISH, prepare_vocabulary

_DELIMITERS = {"comma": ",", "tab": "\t"}


class Labelled(LabelledCsv):
    """Rows "class","text",... of UTF-8 text, with classes from 1 on and any number of columns of text.

    DBpedia, Yelp and Yahoo! Answers have this form as Zhang, Zhao and LeCun published them, 2015,
    https://arxiv.org/abs/1509.01626. SAGE does not download them.
    """

    def __init__(
        self,
        root: Path,
        *,
        folder: str = "dbpedia_csv",
        delimiter: Literal["comma", "tab"] = "comma",
        separator: str = " ",
        num_classes: Count | None = None,
        tokenizer: Tokens = "wordpiece",
        vocabulary: str = ENGLISH,
        lower_case: bool = True,
        length: Length = 128,
        limit_train: Count | None = None,
        limit_test: Count | None = None,
    ) -> None:
        """Read train.csv and test.csv of a folder.

        Args:
            folder: The folder of both files, relative to the folder of the data sets.
            delimiter: What is between the columns.
            separator: What joins the columns of text into one.
            num_classes: Number of classes; if omitted, the largest class of the training texts that are read.
            tokenizer: BERT's word pieces of a vocabulary file, or the words of the training texts.
            vocabulary: The file of word pieces, one per line, relative to the folder of the data sets.
            lower_case: Whether the word pieces are those of lower-case text without accents.
            length: Tokens of a text; the end of a longer text is dropped.
            limit_train: Train only on this number of texts, the first ones.
            limit_test: Evaluate only on this number of texts, the first ones.
        """
        super().__init__(
            root,
            *_files(root, folder),
            Rows(_DELIMITERS[delimiter], separator, num_classes),
            dataset=f"labelled_csv --folder {folder}",
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            lower_case=lower_case,
            length=length,
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @staticmethod
    def prepare(
        root: Path,
        *,
        folder: str = "dbpedia_csv",
        delimiter: Literal["comma", "tab"] = "comma",
        vocabulary: str = ENGLISH,
    ) -> None:
        """Check every row of both files, which SAGE cannot download, and download the vocabulary.

        Args:
            folder: The folder of train.csv and test.csv, relative to the folder of the data sets.
            delimiter: What is between the columns.
            vocabulary: The file of word pieces, relative to the folder of the data sets.
        """
        check_rows(_files(root, folder), Rows(_DELIMITERS[delimiter]))
        prepare_vocabulary(root, vocabulary, dataset=f"labelled_csv --folder {folder}")


def _files(root: Path, folder: str) -> tuple[Path, Path]:
    return given_files(
        root / folder, "copy it there, or set --data.folder to a folder with train.csv and test.csv"
    )


DATASET = Labelled
