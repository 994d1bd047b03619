"""AG News: 120,000 news of the web in 4 classes, with title and description, and 7,600 for testing."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from sage.data.fetch import DataError, checked, download, preparing
from sage.data.labelled_csv import Count, LabelledCsv, Length, Rows, Tokens, read_labelled_csv
from sage.data.wordpiece import ENGLISH, prepare_vocabulary, vocabulary_file


class AGNews(LabelledCsv):
    """AG News (Zhang, Zhao, LeCun, 2015, https://arxiv.org/abs/1509.01626), for non-commercial use.

    The classes are World, Sports, Business, Sci/Tech. A text is "title - description", as in the code of
    Sun et al., "How to Fine-Tune BERT for Text Classification?", 2019, https://arxiv.org/abs/1905.05583.
    """

    url: ClassVar[str] = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/"
    md5: ClassVar[dict[str, str]] = {
        "train.csv": "b1a00f826fdfbd249f79597b59e1dc12",
        "test.csv": "d52ea96a97a2d943681189a97654912d",
    }

    def __init__(
        self,
        root: Path,
        *,
        excerpt: bool = False,
        tokenizer: Tokens = "wordpiece",
        vocabulary: str = ENGLISH,
        lower_case: bool = True,
        length: Length = 128,
        limit_train: Count | None = None,
        limit_test: Count | None = None,
    ) -> None:
        """Read `ag_news_csv/train.csv` and `test.csv` under `root`.

        Args:
            excerpt: Accept a train.csv with only some of the official rows; the run's manifest says so.
            tokenizer: BERT's word pieces of a vocabulary file, or the words of the training texts.
            vocabulary: The file of word pieces, one per line, relative to the folder of the data sets.
            lower_case: Whether the word pieces are those of lower-case text without accents.
            length: Tokens of a text; the end of a longer text is dropped.
            limit_train: Train only on this number of texts, the first ones.
            limit_test: Evaluate only on this number of texts, the first ones.
        """
        train, test = self._files(root, excerpt)
        super().__init__(
            root,
            train,
            test,
            _ROWS,
            dataset="ag_news",
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            lower_case=lower_case,
            length=length,
            limit_train=limit_train,
            limit_test=limit_test,
        )
        if excerpt and not self._is_official(root):
            rows = sum(1 for _ in read_labelled_csv(train, _ROWS))
            self.provenance = f"an excerpt of AG News: {rows:,} rows in train.csv, not the official 120,000"

    @classmethod
    def prepare(cls, root: Path, *, vocabulary: str = ENGLISH, excerpt: bool = False) -> None:
        """Download and verify the files and the vocabulary, unless they exist.

        Args:
            vocabulary: The file of word pieces, relative to the folder of the data sets.
            excerpt: Keep a train.csv with only some of the official rows.
        """
        is_there = partial(cls._complete, root, vocabulary, excerpt)
        with preparing(root, "ag_news_csv", is_there=is_there) as is_missing:
            if is_missing:
                for name, md5 in cls.md5.items():
                    path = root / "ag_news_csv" / name
                    if not (excerpt and name == "train.csv" and path.is_file()):
                        download([cls.url + name], path, md5=md5)
                prepare_vocabulary(root, vocabulary, dataset="ag_news")

    @classmethod
    def _complete(cls, root: Path, vocabulary: str, excerpt: bool) -> None:
        cls._files(root, excerpt)
        vocabulary_file(root, vocabulary, dataset="ag_news")

    @classmethod
    def _is_official(cls, root: Path) -> bool:
        try:
            cls._files(root, excerpt=False)
        except DataError:
            return False
        return True

    @classmethod
    def _files(cls, root: Path, excerpt: bool) -> Sequence[Path]:
        """Find the files and verify their checksums."""
        expected = cls.md5 | ({"train.csv": None} if excerpt else {})
        return [
            checked(root / "ag_news_csv" / name, md5=md5, dataset="ag_news") for name, md5 in expected.items()
        ]


_ROWS = Rows(separator=" - ", num_classes=4)

DATASET = AGNews
