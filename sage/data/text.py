"""Text for language models: numericalised by a vocabulary, cached, and split into contiguous batches."""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

from sage.data.corpus import Corpus, kept
from sage.data.dataset import Batch, cache_root, check_limit
from sage.data.fetch import checked
from sage.validate import Range

# N = tokens of a stream, R = rows that the stream is cut into, L = tokens in a row,
# W = ranks, B = rows in one rank's batch, T = tokens of a row in a batch

log = logging.getLogger(__name__)

Tokenizer = Literal["split", "words", "spacy"]
"""Split at white space (`split`), also between words and punctuation (`words`), or by spaCy for English."""

Split = Literal["valid", "test"]
"""The split of a corpus that is evaluated."""

Positive = Annotated[int, Range(1)]

Stream = TypeVar("Stream", Tensor, npt.NDArray[Any])

_ENCODING = 2
"""Version of the cache; increase it when the numbering of a text or the cache format changes."""


class Tokens:
    """A `sage.data.dataset.Dataset` of a corpus; the rows of each batch continue those of the last batch.

    For training, the stream is cut into W·B rows; rank r takes B rows from row r·B on. A batch is the next T
    tokens of each row, with the tokens that follow them as targets. So a model may carry its hidden state
    from batch to batch, and the order does not depend on the seed.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        checksums: dict[str, str],
        bptt: int,
        eval_batch_size: int,
        evaluate_on: Split,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """Store the streams; a limit keeps only their first tokens and does not change the vocabulary.

        Args:
            bptt: Tokens per row of a batch: the length of truncated backpropagation through time.
            eval_batch_size: Number of rows that the evaluated split is cut into, over all ranks.
        """
        self.vocabulary = corpus.vocabulary
        self.train_N = first(limit_train, corpus.streams["train"], "limit_train")
        self.test_N = first(limit_test, corpus.streams[evaluate_on], "limit_test")
        self.bptt = bptt
        self.eval_batch_size = eval_batch_size
        self.checksums = checksums
        self.facts = {"vocab_size": len(corpus.vocabulary)}

    def num_steps(self, *, batch_size: int, world_size: int) -> int:
        """Count the batches of an epoch; the number is the same on every rank; the last may be shorter."""
        _, L = rows(self.train_N, world_size * batch_size).shape
        return len(range(0, L - 1, self.bptt))

    def train_batches(
        self, *, epoch: int, rank: int, world_size: int, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """Yield this rank's batches (tokens_BT, targets_BT), from batch `start` on."""
        train_RL = rows(self.train_N, world_size * batch_size)
        yield from windows(train_RL[rank * batch_size : (rank + 1) * batch_size], self.bptt, start)

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield this rank's share of the evaluated split: every W-th of its `eval_batch_size` rows.

        Perplexity depends on the number of rows, so that number depends neither on `batch_size` nor on the
        number of ranks. A rank without a row has no batch. Every token is predicted once, except the first
        token of each row, which has no predecessor, and the tokens at the end (fewer than the number of rows)
        that do not fill another column.
        """
        test_BL = rows(self.test_N, self.eval_batch_size)[rank::world_size]
        if len(test_BL):
            yield from windows(test_BL, self.bptt)


def rows(stream_N: Tensor, num_rows: int) -> Tensor:
    """Cut a stream into contiguous rows of equal length; the remainder at the end is dropped.

    >>> rows(torch.arange(7), 2)
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    length = len(stream_N) // num_rows
    if length < 2:
        raise ValueError(
            f"{len(stream_N)} tokens do not fill {num_rows} rows of at least 2 tokens: use at most "
            f"{len(stream_N) // 2} rows (fewer ranks or a smaller batch size), or more tokens"
        )
    return stream_N[: num_rows * length].view(num_rows, length)


def windows(rows_RL: Tensor, bptt: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield windows of `bptt` tokens of each row and the tokens that follow, from window `start` on.

    >>> for tokens_RT, targets_RT in windows(torch.tensor([[0, 1, 2, 3]]), bptt=2):
    ...     print(tokens_RT, targets_RT)
    tensor([[0, 1]]) tensor([[1, 2]])
    tensor([[2]]) tensor([[3]])
    """
    last = rows_RL.shape[1] - 1
    for begin in range(start * bptt, last, bptt):
        end = min(begin + bptt, last)
        yield rows_RL[:, begin:end].long(), rows_RL[:, begin + 1 : end + 1].long()


def read(root: Path, folder: str, sums: Mapping[str, str], *, dataset: str) -> dict[str, str]:
    """Read the splits of a corpus from verified files NAME.SPLIT.EXTENSION in `root/folder`, else in `root`.

    Args:
        sums: The sha256 of each file, by name.
        dataset: Name of the data set in the command that fetches the files.
    """
    here = any((root / name).is_file() for name in sums) and not (root / folder).is_dir()
    base = root if here else root / folder
    return {
        name.split(".")[1]: checked(base / name, sha256=sha256, dataset=dataset).read_text(encoding="utf-8")
        for name, sha256 in sums.items()
    }


def encode(
    texts: Mapping[str, str], root: Path, *, tokenizer: Tokenizer, pad: bool = False, min_freq: int = 1
) -> Corpus:
    """Numericalise a corpus: lower-case tokens, `<eos>` after each line, vocabulary of the training split.

    A token that is not in the vocabulary becomes `<unk>`. The result is cached in `root/.cache`, or in
    `$XDG_CACHE_HOME/sage` if `root` is not writable, under a hash of everything that it depends on.

    Args:
        texts: The text of each split; one split is `train`.
        pad: Add torchtext's `<pad>` to the vocabulary, although no text contains it.
        min_freq: Exclude tokens that are less frequent in the training split from the vocabulary.

    Raises:
        ValueError: A package is missing.
    """
    software = _torchtext(), _spacy() if tokenizer == "spacy" else ""
    sums = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()}
    key = repr((_ENCODING, sums, tokenizer, pad, min_freq, software))
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    make = partial(_numbered, texts, tokenizer, pad=pad, min_freq=min_freq)
    cache = cache_root(root)
    if cache is None:
        return make()
    try:
        return kept(cache / name, texts, make)
    except OSError as error:
        # The cache only saves time, so this is not an error.
        log.warning("the tokenized text is not cached: %s", error)
        return make()


def _torchtext() -> str:
    """The version of torchtext."""
    try:
        return version("torchtext")
    except PackageNotFoundError as error:
        raise ValueError(
            "a text of words needs the package torchtext: pip install torchtext==0.6.0"
        ) from error


def _spacy() -> str:
    """The version of spaCy."""
    try:
        return version("spacy")
    except PackageNotFoundError as error:
        raise ValueError(
            "the tokenizer spacy needs the package spacy: pip install 'sage-bench[text]', or set "
            "--data.tokenizer split"
        ) from error


def tokenize(field: Any, text: str) -> list[str]:
    """Tokenize with a torchtext field, line by line."""
    tokens = []
    for line in text.removesuffix("\n").split("\n"):
        tokens += [*field.preprocess(line), "<eos>"]
    return tokens


def text_field(tokenizer: Tokenizer, *, pad: bool = False) -> Any:
    """Make the torchtext field that tokenizes, lower-cases and numericalises text."""
    # torchtext and spaCy take seconds to import and are not needed if the corpus is in the cache.
    from torchtext.data import Field

    pad_token: Any = "<pad>" if pad else None
    return Field(
        lower=True,
        tokenize=_tokenizer(tokenizer),
        pad_token=pad_token,
        batch_first=True,
        dtype=torch.int32,
    )


def _tokenizer(name: Tokenizer) -> Callable[[str], list[str]]:
    if name == "split":
        return str.split
    if name == "words":
        return re.compile(r"\w+|[^\w\s]+").findall
    import spacy
    from spacy.attrs import ORTH

    english: Any = spacy.blank("en").tokenizer
    for special in ("<eos>", "<bos>", "<unk>"):
        english.add_special_case(special, [{ORTH: special}])
    return lambda text: [token.text for token in english(text)]


def _numbered(texts: Mapping[str, str], tokenizer: Tokenizer, *, pad: bool, min_freq: int) -> Corpus:
    field = text_field(tokenizer, pad=pad)
    tokens = {split: tokenize(field, text) for split, text in texts.items()}
    field.build_vocab([tokens["train"]], min_freq=min_freq)
    return Corpus(
        vocabulary=field.vocab.itos,
        streams={split: field.numericalize([stream])[0] for split, stream in tokens.items()},
    )


def first(limit: int | None, stream_N: Stream, option: str) -> Stream:
    """Return the first tokens of a stream, or all of them without a limit.

    Raises:
        ValueError: if the stream has fewer tokens; the message names the option.
    """
    check_limit(limit, len(stream_N), option, of="tokens")
    return stream_N[:limit]
