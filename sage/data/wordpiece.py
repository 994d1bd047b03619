"""WordPiece: the tokenizer of BERT, read from a vocabulary file, by Hugging Face's tokenizers.

Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", 2019, https://arxiv.org/abs/1810.04805. Install `sage-bench[text]` for it.
"""

import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sage.data.fetch import DataError, checked, download, preparing, sha256_of
from sage.data.whole_words import SPECIAL
from sage.storage import open_regular

# N = texts, T = tokens of a text

_MAX_BYTES = 1 << 26


class _Published(NamedTuple):
    urls: tuple[str, ...]
    sha256: str


def _hugging_face(name: str) -> str:
    return f"https://huggingface.co/google-bert/{name}/resolve/main/vocab.txt"


ENGLISH = "bert-vocab/vocab.txt"
CHINESE = "bert-vocab-chinese/vocab.txt"

PUBLISHED = {
    ENGLISH: _Published(
        (
            _hugging_face("bert-base-uncased"),
            "https://s3.amazonaws.com/models.huggingface.co/bert/bert-base-uncased-vocab.txt",
        ),
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    ),
    CHINESE: _Published(
        (
            _hugging_face("bert-base-chinese"),
            "https://s3.amazonaws.com/models.huggingface.co/bert/bert-base-chinese-vocab.txt",
        ),
        "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c",
    ),
}
"""BERT's vocabularies, by their place in the folder of the data sets: 30,522 and 21,128 pieces."""


class WordPiece:
    """Tokenizes by the pieces of words in a vocabulary file, as `BertTokenizer` of transformers does.

    Text is cleaned, split at white space, punctuation and Chinese characters, and each word into the longest
    pieces that the file has, from its start; a piece that continues a word begins with `##`.
    """

    def __init__(self, path: Path, *, lower_case: bool = True) -> None:
        """Read a vocabulary file.

        Args:
            path: A file with one piece per line; the first is `[PAD]`.
            lower_case: Convert text to lower case and remove accents, as the uncased and Chinese models do.

        Raises:
            DataError: The file is no vocabulary.
            ValueError: The package tokenizers is not installed.
        """
        self.vocabulary: Sequence[str] = read_vocabulary(path)
        number = {piece: index for index, piece in enumerate(self.vocabulary)}
        tokenizer = _tokenizers().BertWordPieceTokenizer(number, lowercase=lower_case)
        self._encode = tokenizer.encode
        self._truncate = tokenizer.enable_truncation

    def ids(self, texts: Sequence[str], length: int) -> Tensor:
        """Return the ids of texts, int32, of shape (N, T): truncated at their end or padded to `length`."""
        self._truncate(length)
        ids_NT = torch.zeros(len(texts), length, dtype=torch.int32)
        for row_T, text in zip(ids_NT, texts, strict=True):
            ids = self._encode(text).ids  # not encode_batch, whose threads and a fork do not go together
            row_T[: len(ids)] = torch.tensor(ids, dtype=torch.int32)
        return ids_NT


def read_vocabulary(path: Path) -> list[str]:
    """Return the pieces of a vocabulary file, one per line.

    Raises:
        DataError: A piece occurs twice, a special token is missing, or the first piece is not `[PAD]`.
    """
    try:
        with open_regular(path, limit=_MAX_BYTES) as file:
            pieces = [line.rstrip("\r") for line in file.read().decode().removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no vocabulary: it is not UTF-8, at byte {error.start}") from error
    first: dict[str, int] = {}
    for number, piece in enumerate(pieces, start=1):
        if (before := first.setdefault(piece, number)) != number:
            raise DataError(f"{path} is no vocabulary: lines {before} and {number} have the same piece")
    missing = [token for token in SPECIAL if token not in first]
    if missing or first["[PAD]"] != 1:
        raise DataError(
            f"{path} is no vocabulary of BERT: it needs [PAD] in its first line, and {', '.join(SPECIAL[1:])}"
        )
    return pieces


def vocabulary_file(root: Path, name: str, *, dataset: str) -> Path:
    """Return a vocabulary file in the folder of the data sets, verified if it is one of `PUBLISHED`.

    Raises:
        DataError: The file is missing or damaged; the message says how to fetch it for `dataset`.
    """
    if name in PUBLISHED:
        return checked(root / name, sha256=PUBLISHED[name].sha256, dataset=dataset)
    path = root / Path(name).expanduser()
    if not path.is_file():
        raise DataError(
            f"{path} is missing: set vocabulary to a file with one word piece per line, or to one that "
            f"`sage data prepare {dataset}` downloads: {', '.join(PUBLISHED)}"
        )
    return path


def prepare_vocabulary(root: Path, name: str, *, dataset: str) -> None:
    """Download a published vocabulary, unless it exists; check any other.

    Raises:
        DataError: The file cannot be fetched, or is missing and not published.
    """
    find = partial(vocabulary_file, root, name, dataset=dataset)
    with preparing(root, "bert-vocab", is_there=find) as is_missing:
        if is_missing and name in PUBLISHED:
            download(PUBLISHED[name].urls, root / name, sha256=PUBLISHED[name].sha256)
    read_vocabulary(find())


def vocabulary_sum(path: Path) -> dict[str, str]:
    """Return the sha256 of a vocabulary file by its name, for the manifest of a run."""
    return {path.name: sha256_of(path)}


def _tokenizers() -> Any:
    """Import tokenizers, which only this needs."""
    try:
        return importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the tokenizer wordpiece needs the package {error.name}: pip install 'sage-bench[text]', "
            "or set --data.tokenizer words"
        ) from error
