"""Topics: about 80,000 tokens of documentation included in Python, without any download."""

from pathlib import Path

from sage.data.help_topics import checksums, help_topics
from sage.data.text import Positive, Split, Tokenizer, Tokens, encode


class Topics(Tokens):
    """The texts of Python's `help()` on statements, operators and more (https://docs.python.org/3/reference).

    The text differs between versions of Python, so results are comparable only if the checksums in the
    manifests are equal. Of every ten topics in alphabetical order, eight are for training, one for validation
    and one for testing. A word that occurs only once in the training split becomes `<unk>`.
    """

    def __init__(
        self,
        root: Path,
        *,
        tokenizer: Tokenizer = "words",
        bptt: Positive = 35,
        eval_batch_size: Positive = 10,
        evaluate_on: Split = "test",
        limit_train: Positive | None = None,
        limit_test: Positive | None = None,
    ) -> None:
        """Read the topics from Python; the numericalised text is cached in `root`.

        Args:
            tokenizer: The tokenizer; `words` separates words from punctuation.
            bptt: Tokens per row of a batch: the length of truncated backpropagation through time.
            eval_batch_size: Number of rows that the evaluated split is cut into, over all ranks.
            evaluate_on: The split to evaluate.
            limit_train: Train only on this number of tokens, the first ones.
            limit_test: Evaluate only on this number of tokens, the first ones.
        """
        super().__init__(
            encode(help_topics(), root, tokenizer=tokenizer, min_freq=2),
            checksums=checksums(),
            bptt=bptt,
            eval_batch_size=eval_batch_size,
            evaluate_on=evaluate_on,
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @staticmethod
    def prepare(root: Path) -> None:
        """Do nothing, because Python includes the topics."""


DATASET = Topics
