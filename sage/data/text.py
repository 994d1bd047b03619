"""Text for language models: numbered by a vocabulary, kept, and dealt out in contiguous batches."""

import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sage.data.corpus import Corpus, kept
from sage.data.dataset import Batch
from sage.data.fetch import checked
from sage.validate import Range

# N = tokens of a stream, R = rows it is cut into, L = tokens in a row,
# W = ranks, B = rows in one rank's batch, T = tokens of a row in a batch

log = logging.getLogger(__name__)

Tokenizer = Literal["split", "words", "spacy"]
"""At white space (`split`), also between words and punctuation (`words`), or as spaCy does for English."""

Split = Literal["valid", "test"]
"""The part of a corpus that is evaluated."""

Positive = Annotated[int, Range(1)]

_ENCODING = 2
"""To be raised when the same text is numbered otherwise than before, or kept otherwise."""


class Tokens:
    """A corpus in batches whose rows continue those of the last batch; a `sage.data.dataset.Dataset`.

    Training cuts the stream into W·B rows, of which rank r has B from the r·B-th on. A batch is the next T
    tokens of each, with the tokens that follow them. So a model may carry its hidden state from batch to
    batch, and there is one order only, whatever the seed.
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
        """Hold the streams; a limit keeps their first tokens, and leaves the vocabulary whole.

        Args:
            bptt: Tokens of a row in a batch, through which gradients flow back.
            eval_batch_size: Rows that the evaluated split is cut into, for all ranks together.
        """
        self.vocabulary = corpus.vocabulary
        self.train_N = _first(limit_train, corpus.streams["train"], "limit_train")
        self.test_N = _first(limit_test, corpus.streams[evaluate_on], "limit_test")
        self.bptt = bptt
        self.eval_batch_size = eval_batch_size
        self.checksums = checksums
        self.facts = {"vocab_size": len(corpus.vocabulary)}

    def num_steps(self, *, batch_size: int, world_size: int) -> int:
        """Count the batches of an epoch, the same on every rank; the last may be shorter."""
        _, L = rows(self.train_N, world_size * batch_size).shape
        return len(range(0, L - 1, self.bptt))

    def train_batches(
        self, *, epoch: int, rank: int, world_size: int, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """Yield this rank's (tokens_BT, targets_BT), from batch `start` on."""
        train_RL = rows(self.train_N, world_size * batch_size)
        yield from windows(train_RL[rank * batch_size : (rank + 1) * batch_size], self.bptt, start)

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield this rank's share of the evaluated split: every W-th of its `eval_batch_size` rows.

        Perplexity depends on the number of rows, so neither `batch_size` nor the number of ranks changes it,
        and a rank for which there is no row has no batch. Every token is predicted once, but for the first of
        each row, which follows none, and those at the end, fewer than the rows, that fill no further column.
        """
        test_BL = rows(self.test_N, self.eval_batch_size)[rank::world_size]
        if len(test_BL):
            yield from windows(test_BL, self.bptt)


def rows(stream_N: Tensor, num_rows: int) -> Tensor:
    """Cut a stream into contiguous rows of one length; what is left over at the end is dropped.

    >>> rows(torch.arange(7), 2)
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    length = len(stream_N) // num_rows
    if length < 2:
        raise ValueError(
            f"{len(stream_N)} tokens do not fill {num_rows} rows of at least 2: have at most "
            f"{len(stream_N) // 2} rows, by fewer ranks or a lower batch size, or give more tokens"
        )
    return stream_N[: num_rows * length].view(num_rows, length)


def windows(rows_RL: Tensor, bptt: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk along the rows by `bptt` tokens, with those that follow them as targets, from window `start` on.

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
    """Read a corpus by split, from checked files NAME.SPLIT.EXTENSION in `root/folder`, else in `root`.

    Args:
        sums: The sha256 by file name.
        dataset: What the command that fetches the files calls them.
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
    """Number a corpus's tokens, lower-cased, `<eos>` after each line, by its training split's vocabulary.

    A token that is not in it is `<unk>`. The outcome is kept in `root/.cache`, or where `root` cannot be
    written in `$XDG_CACHE_HOME/sage`, under a name made of all that it depends on.

    Args:
        texts: The text by split, one of which is `train`.
        pad: Give torchtext's `<pad>` a number too, though no text has it.
        min_freq: Leave out of the vocabulary what the training split has less often.
    """
    software = version("torchtext"), version("spacy") if tokenizer == "spacy" else ""
    sums = {split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()}
    key = repr((_ENCODING, sums, tokenizer, pad, min_freq, software))
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    make = partial(_numbered, texts, tokenizer, pad=pad, min_freq=min_freq)
    cache = _cache_root(root)
    if cache is None:
        return make()
    try:
        return kept(cache / name, texts, make)
    except OSError as error:
        # The cache only saves time.
        log.warning("the numbered text is not kept: %s", error)
        return make()


def tokenize(field: Any, text: str) -> list[str]:
    """Tokenize with a torchtext field, line by line."""
    tokens = []
    for line in text.removesuffix("\n").split("\n"):
        tokens += [*field.preprocess(line), "<eos>"]
    return tokens


def text_field(tokenizer: Tokenizer, *, pad: bool = False) -> Any:
    """Make the torchtext field that tokenizes, lower-cases and numbers."""
    # torchtext and spaCy take seconds to import, and where the cache has the corpus nobody needs them.
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


def _cache_root(root: Path) -> Path | None:
    # The folder's mode is asked too, for `os.access` grants the superuser what its owner has closed.
    if root.is_dir() and root.stat().st_mode & stat.S_IWUSR and os.access(root, os.W_OK):
        return root / ".cache"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sage"
    except RuntimeError:  # a user without a home
        return None


def _first(limit: int | None, stream_N: Tensor, option: str) -> Tensor:
    if limit is not None and not 1 <= limit <= len(stream_N):
        raise ValueError(
            f"{option} is {limit}: give 1 to {len(stream_N)} tokens, or leave it out for all of them"
        )
    return stream_N[:limit]
