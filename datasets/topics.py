"""Topics: about 80,000 tokens of documentation that come with Python, nothing to download."""

from pathlib import Path
from pydoc_data import topics

from sage.data.fetch import sha256_of
from sage.data.text import Positive, Split, Tokenizer, Tokens, encode


class Topics(Tokens):
    """What Python's `help()` says of statements, operators and the like (https://docs.python.org/3/reference).

    The text is another in each version of Python, so results compare only where the checksums in the
    manifests agree. Of ten topics in alphabetical order eight are to train, one to validate and one to test.
    A word that the training split has but once is `<unk>`.
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
        """Read the topics out of Python; `root` serves to keep their numbers.

        Args:
            tokenizer: How lines become tokens; `words` parts words from punctuation.
            bptt: Tokens of a row in a batch, through which gradients flow back.
            eval_batch_size: Rows that the evaluated split is cut into, for all ranks together.
            evaluate_on: The split to evaluate.
            limit_train: Train on only so many tokens, the first.
            limit_test: Evaluate on only so many tokens, the first.
        """
        texts = {"train": "", "valid": "", "test": ""}
        for index, (_, text) in enumerate(sorted(topics.topics.items())):
            # Topics differ much in length; these places leave thousands of words to evaluate.
            texts[{5: "test", 6: "valid"}.get(index % 10, "train")] += text
        super().__init__(
            encode(texts, root, tokenizer=tokenizer, min_freq=2),
            checksums={"pydoc_data/topics.py": sha256_of(Path(topics.__file__))},
            bptt=bptt,
            eval_batch_size=eval_batch_size,
            evaluate_on=evaluate_on,
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @staticmethod
    def prepare(root: Path) -> None:
        """Do nothing: Python carries the topics."""


DATASET = Topics
