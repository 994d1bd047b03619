"""Tiny Shakespeare: 1,115,394 characters of Shakespeare's plays, 65 different ones."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from sage.data.fetch import checked, download, preparing
from sage.data.text import Positive
from sage.data.windows import Sampling, Windows


class TinyShakespeare(Windows):
    """Tiny Shakespeare (https://github.com/karpathy/char-rnn), with characters as tokens.

    As in nanoGPT, the first 90 % (1,003,854 characters) are for training and the other 111,540 for
    validation; the vocabulary is that of the whole text, in the order of the characters' codes.
    """

    urls: ClassVar[Sequence[str]] = (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
    )
    sha256: ClassVar[str] = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

    def __init__(
        self,
        root: Path,
        *,
        block_size: Positive = 64,
        windows: Sampling = "random",
        limit_train: Positive | None = None,
        limit_test: Positive | None = None,
    ) -> None:
        """Read the text under `root`, at `tinyshakespeare/input.txt` or `input.txt`.

        Args:
            block_size: Tokens in a window, the sample.
            windows: How an epoch's windows are chosen: at random, or shuffled, each once (strided).
            limit_train: Train only on this number of tokens, the first ones.
            limit_test: Evaluate only on this number of tokens, the first ones.
        """
        text_N = np.frombuffer(self._file(root).read_bytes(), np.uint8)
        characters, numbers_N = np.unique(text_N, return_inverse=True)
        num_train = len(text_N) * 9 // 10
        self.vocabulary = [chr(code) for code in characters.tolist()]
        tokens_N = numbers_N.astype(np.uint8)
        super().__init__(
            tokens_N[:num_train],
            tokens_N[num_train:],
            vocab_size=len(characters),
            block_size=block_size,
            windows=windows,
            checksums={"input.txt": self.sha256},
            character_level=True,
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Download and verify the file, unless it exists."""
        with preparing(root, "tinyshakespeare", is_there=partial(cls._file, root)) as is_missing:
            if is_missing:
                download(cls.urls, root / "tinyshakespeare" / "input.txt", sha256=cls.sha256)

    @classmethod
    def _file(cls, root: Path) -> Path:
        here = (root / "input.txt").is_file() and not (root / "tinyshakespeare").is_dir()
        path = (root if here else root / "tinyshakespeare") / "input.txt"
        return checked(path, sha256=cls.sha256, dataset="tiny_shakespeare")


DATASET = TinyShakespeare
