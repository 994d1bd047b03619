"""Topics as bytes: about 466,000 bytes of documentation included in Python, without any download."""

from pathlib import Path

import numpy as np

from sage.data.help_topics import checksums, help_topics
from sage.data.text import Positive, Split
from sage.data.windows import Sampling, Windows


class TopicsBytes(Windows):
    """The texts of the data set `topics`, with the bytes of their UTF-8 encoding as tokens.

    The text differs between versions of Python, so results are comparable only if the checksums in the
    manifests are equal. The vocabulary has all 256 bytes.
    """

    def __init__(
        self,
        root: Path,
        *,
        block_size: Positive = 64,
        windows: Sampling = "random",
        evaluate_on: Split = "test",
        limit_train: Positive | None = None,
        limit_test: Positive | None = None,
    ) -> None:
        """Read the topics from Python; `root` is not used.

        Args:
            block_size: Tokens in a window, the sample.
            windows: How an epoch's windows are chosen: at random, or shuffled, each once (strided).
            evaluate_on: The split to evaluate.
            limit_train: Train only on this number of tokens, the first ones.
            limit_test: Evaluate only on this number of tokens, the first ones.
        """
        bytes_N = {split: np.frombuffer(text.encode(), np.uint8) for split, text in help_topics().items()}
        super().__init__(
            bytes_N["train"],
            bytes_N[evaluate_on],
            vocab_size=256,
            block_size=block_size,
            windows=windows,
            checksums=checksums(),
            character_level=True,
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @staticmethod
    def prepare(root: Path) -> None:
        """Do nothing, because Python includes the topics."""


DATASET = TopicsBytes
