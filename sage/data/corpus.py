"""A numericalised text corpus and its cache folder, so that the text is tokenized only once.

    vocabulary.json    the tokens, and the sha256 of each split's file
    SPLIT.npy          a stream of int32

The folder is a cache: a damaged one is logged by name and made again. If several processes need the same text
at the same time, the first makes the folder and the others wait.
"""
# N = tokens of a stream

import hashlib
import io
import logging
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sage import storage
from sage.data.fetch import DataError
from sage.storage.lock import Locked, locked

log = logging.getLogger(__name__)

WAIT_SECONDS = 3600.0
"""Timeout of a process that waits for another one to tokenize the same text."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text whose tokens are indices into the vocabulary of its training split."""

    vocabulary: list[str]
    streams: dict[str, Tensor]
    """The tokens of each split, int32."""


def kept(folder: Path, splits: Iterable[str], make: Callable[[], Corpus]) -> Corpus:
    """Return the corpus in a folder; if it is missing or damaged, make it and save it there.

    Raises:
        DataError: if another process is still making it after `WAIT_SECONDS`.
        OSError: if the folder cannot be written.
    """
    with suppress(FileNotFoundError, storage.Unreadable):
        return _read(folder, splits)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder.parent / f".{folder.name}.lock", wait=WAIT_SECONDS):
            try:
                return _read(folder, splits)  # another process may have made it in the meantime
            except FileNotFoundError:
                pass
            except storage.Unreadable as error:
                log.warning("%s: creating it again", error)
            corpus = make()
            _write(corpus, folder)
            return corpus
    except Locked as error:
        raise DataError(
            f"{folder} is being created by {error}: wait until it ends or stop it, then try again"
        ) from error


def _read(folder: Path, splits: Iterable[str]) -> Corpus:
    vocabulary = storage.read_json(folder / "vocabulary.json", storage.VOCABULARY)
    streams = {}
    for split in splits:
        path = folder / f"{split}.npy"
        content = storage.read_bytes(path)
        if hashlib.sha256(content).hexdigest() != vocabulary["sums"].get(split):
            raise storage.Damaged(path, "is damaged: its sha256 is not the one in vocabulary.json")
        streams[split] = torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
    return Corpus(vocabulary=vocabulary["tokens"], streams=streams)


def _write(corpus: Corpus, folder: Path) -> None:
    """Write a corpus to a temporary folder and rename it, so that a folder of this name is complete."""
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.partial")
    try:
        draft.mkdir()
        sums = {}
        for split, stream_N in corpus.streams.items():
            content = io.BytesIO()
            np.save(content, stream_N.numpy())
            sums[split] = hashlib.sha256(content.getvalue()).hexdigest()
            storage.write_bytes(draft / f"{split}.npy", content.getvalue())
        vocabulary = {"tokens": corpus.vocabulary, "sums": sums}
        storage.write_json(draft / "vocabulary.json", vocabulary, storage.VOCABULARY)
        storage.remove(folder)
        draft.rename(folder)
        storage.sync_folder(folder.parent)
    except BaseException:
        with suppress(OSError):
            storage.remove(draft)
        raise
