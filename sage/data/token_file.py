"""Reads a file of uint16 token ids, which may be larger than memory.

Such a file is little-endian and has no header. Its sha256 and its largest token are found by one pass over
the file, and kept in the cache of the data sets until the file's size or time of modification changes.
"""
# N = tokens of the file

import hashlib
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sage import storage
from sage.data.dataset import cache_root
from sage.data.fetch import DataError
from sage.data.windows import Stream

log = logging.getLogger(__name__)

_CHUNK = 1 << 24


@dataclass(frozen=True)
class TokenFile:
    """The tokens of a file, mapped into memory, and the file's sha256."""

    tokens_N: Stream
    sha256: str


def read_tokens(path: Path, root: Path, *, vocabulary: int, remedy: str) -> TokenFile:
    """Map a file of tokens into memory, after a check of its size and of its largest token.

    Args:
        root: The folder of the data sets, whose cache keeps the sha256 and the largest token.
        vocabulary: The number of words; every token must be less.
        remedy: What to do if the file is missing.

    Raises:
        DataError: if the file is missing, empty, has an odd size, or has a token that is not less.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: {remedy}")
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise DataError(
            f"{path} has {size} bytes; expected is 2 bytes for each token, at least one: it is incomplete or "
            "not a file of uint16 tokens, so write it again"
        )
    tokens_N = np.memmap(path, dtype="<u2", mode="r")
    sha256, largest = _summary(path, tokens_N, root)
    if largest >= vocabulary:
        raise DataError(
            f"{path} has the token {largest}, but the vocabulary has {vocabulary} words: set "
            f"--data.vocabulary to at least {largest + 1}, or check that the file has uint16 tokens and no "
            "header"
        )
    return TokenFile(tokens_N, sha256)


def _summary(path: Path, tokens_N: Stream, root: Path) -> tuple[str, int]:
    """Return the sha256 and the largest token of a file, from the cache if it has them."""
    stat = path.stat()
    key = repr((str(path.resolve()), stat.st_size, stat.st_mtime_ns))
    cache = cache_root(root)
    kept = cache and cache / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if kept is not None:
        with suppress(FileNotFoundError, storage.Unreadable):
            content = storage.read_json(kept, storage.TOKENS)
            return content["sha256"], content["largest"]
    sha256, largest = hashlib.sha256(), 0
    for start in range(0, len(tokens_N), _CHUNK):
        chunk_N = np.ascontiguousarray(tokens_N[start : start + _CHUNK])
        sha256.update(chunk_N.view(np.uint8).data)
        largest = max(largest, int(chunk_N.max()))
    if kept is not None:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            storage.write_json(kept, {"sha256": sha256.hexdigest(), "largest": largest}, storage.TOKENS)
        except OSError as error:
            # The cache only saves time, so this is not an error.
            log.warning("the sha256 of %s is not cached: %s", path, error)
    return sha256.hexdigest(), largest
