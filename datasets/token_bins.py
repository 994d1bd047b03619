"""Token bins: any text as two files of uint16 token ids, train.bin and val.bin, such as OpenWebText."""

from pathlib import Path
from typing import Annotated

from sage.data.text import Positive
from sage.data.token_file import TokenFile, read_tokens
from sage.data.windows import Sampling, Windows
from sage.validate import Range

Vocabulary = Annotated[int, Range(1, 65536)]


class TokenBins(Windows):
    """Files of tokens as written by https://github.com/karpathy/nanoGPT, data/openwebtext/prepare.py.

    OpenWebText in GPT-2's byte pair encoding has 9,035,582,198 tokens for training and 4,434,897 for
    validation. The files are mapped into memory, not read into it.
    """

    def __init__(
        self,
        root: Path,
        *,
        folder: str = "openwebtext",
        vocabulary: Vocabulary = 50304,
        block_size: Positive = 1024,
        windows: Sampling = "random",
        limit_train: Positive | None = None,
        limit_test: Positive | None = None,
    ) -> None:
        """Open `train.bin` and `val.bin` in a folder.

        Args:
            folder: The folder of the two files, relative to the folder of the data sets.
            vocabulary: Number of words; GPT-2 has 50,257, and nanoGPT rounds them up to 50,304.
            block_size: Tokens in a window, the sample.
            windows: How an epoch's windows are chosen: at random, or shuffled, each once (strided).
            limit_train: Train only on this number of tokens, the first ones.
            limit_test: Evaluate only on this number of tokens, the first ones.
        """
        train, test = (_read(root, folder, name, vocabulary=vocabulary) for name in ("train.bin", "val.bin"))
        super().__init__(
            train.tokens_N,
            test.tokens_N,
            vocab_size=vocabulary,
            block_size=block_size,
            windows=windows,
            checksums={"train.bin": train.sha256, "val.bin": test.sha256},
            character_level=False,
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @staticmethod
    def prepare(root: Path, *, folder: str = "openwebtext", vocabulary: Vocabulary = 50304) -> None:
        """Check the two files, which SAGE cannot make, and keep their checksums for later runs.

        Args:
            folder: The folder of the two files, relative to the folder of the data sets.
            vocabulary: Number of words.
        """
        for name in ("train.bin", "val.bin"):
            _read(root, folder, name, vocabulary=vocabulary)


def _read(root: Path, folder: str, name: str, *, vocabulary: int) -> TokenFile:
    remedy = (
        "write it with prepare.py of nanoGPT's data/openwebtext (https://github.com/karpathy/nanoGPT), "
        "or set --data.folder"
    )
    return read_tokens(root / folder / name, root, vocabulary=vocabulary, remedy=remedy)


DATASET = TokenBins
