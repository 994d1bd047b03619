"""Sogou News: Chinese news, in Chinese characters with 6 classes or in pinyin with 5; not downloaded."""

from pathlib import Path
from typing import Literal, NamedTuple

from sage.data.fetch import DataError, sha256_of
from sage.data.labelled_csv import Count, LabelledCsv, Length, Rows, Tokens, check_rows, given_files
from sage.data.wordpiece import CHINESE, ENGLISH, prepare_vocabulary

Form = Literal["chinese", "pinyin"]


class _Published(NamedTuple):
    folder: str
    rows: Rows
    vocabulary: str
    sha256: dict[str, str]
    """Of the published files by name, if it is known."""


_FORMS = {
    # Sun et al. 2019; the utility study's code reads this form.
    "chinese": _Published("Sogou_data", Rows(delimiter="\t", num_classes=6), CHINESE, {}),
    # Zhang, Zhao, LeCun 2015; sums of the pointers in a public repository (noceanfish/Springboard).
    "pinyin": _Published(
        "sogou_news_csv",
        Rows(num_classes=5),
        ENGLISH,
        {
            "train.csv": "19400f8e4578c0dbfb336ed5160aa6b993c49a40462f11b9a69d27b260dca3ce",
            "test.csv": "8cb8e6e207928601459b23ac79aa0de4a58d7b2a969b4c2ae3f82dc0e271cf9d",
        },
    ),
}


class Sogou(LabelledCsv):
    """Sogou News, whose licence is for scientific research and does not allow SAGE to download it.

    A text is "title content". In Chinese, 54,000 texts to train on and 6,000 to test in 6 classes: Sun et
    al., "How to Fine-Tune BERT for Text Classification?", 2019, https://arxiv.org/abs/1905.05583. In pinyin,
    450,000 and 60,000 in 5 classes: Zhang, Zhao, LeCun, 2015, https://arxiv.org/abs/1509.01626.
    """

    def __init__(
        self,
        root: Path,
        *,
        form: Form = "chinese",
        tokenizer: Tokens = "wordpiece",
        vocabulary: str | None = None,
        lower_case: bool = True,
        length: Length = 512,
        limit_train: Count | None = None,
        limit_test: Count | None = None,
    ) -> None:
        """Read train.csv and test.csv in `Sogou_data` (Chinese) or `sogou_news_csv` (pinyin) under `root`.

        Args:
            form: chinese: columns separated by tabs, 6 classes; pinyin: separated by commas, 5 classes.
            tokenizer: BERT's word pieces of a vocabulary file, or the words of the training texts.
            vocabulary: The file of word pieces, one per line, relative to the folder of the data sets; if
                omitted, BERT's for Chinese or, for pinyin, for English.
            lower_case: Whether the word pieces are those of lower-case text without accents.
            length: Tokens of a text; the end of a longer text is dropped.
            limit_train: Train only on this number of texts, the first ones.
            limit_test: Evaluate only on this number of texts, the first ones.
        """
        published = _FORMS[form]
        train, test = _files(root, form)
        super().__init__(
            root,
            train,
            test,
            published.rows,
            dataset=f"sogou --form {form}",
            tokenizer=tokenizer,
            vocabulary=published.vocabulary if vocabulary is None else vocabulary,
            lower_case=lower_case,
            length=length,
            limit_train=limit_train,
            limit_test=limit_test,
        )
        if any(self.checksums[name] != sha256 for name, sha256 in published.sha256.items()):
            self.provenance = "Sogou News in pinyin, but not the published files"

    @staticmethod
    def prepare(root: Path, *, form: Form = "chinese") -> None:
        """Check the files, which SAGE cannot download, and download the vocabulary.

        Args:
            form: chinese or pinyin.
        """
        published = _FORMS[form]
        files = _files(root, form)
        check_rows(files, published.rows)
        for path in files:
            if (expected := published.sha256.get(path.name)) and (found := sha256_of(path)) != expected:
                raise DataError(
                    f"{path} is not the published file: its sha256 is {found}, not {expected}; "
                    "a run accepts it, and its manifest says so"
                )
        prepare_vocabulary(root, published.vocabulary, dataset=f"sogou --form {form}")


def _files(root: Path, form: Form) -> tuple[Path, Path]:
    return given_files(
        root / _FORMS[form].folder, "copy it there; its licence does not allow SAGE to download it"
    )


DATASET = Sogou
