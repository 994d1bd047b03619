"""Reads files in the format of LIBSVM: on each line a label, and the features that are not zero.

    +1 3:1 11:0.5
    -1 1:2  # a comment

https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/; Chang, Lin, "LIBSVM", 2011,
https://doi.org/10.1145/1961189.1961199.
"""
# N = samples, F = features, K = features of a sample that are not zero

import bz2
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sage.data.fetch import DataError
from sage.storage import open_regular
from sage.validate import shown

_LINE = re.compile(rb"[^\s:]+(?:\s+\d+:[^\s:]+)*")
_PAIR = re.compile(rb"\d+:[^\s:]+")
_FORMAT = "a line is LABEL INDEX:VALUE ..., with indices from 1 on in increasing order"
_MAX_ELEMENTS = 2**32
"""Most elements of the dense matrix: 16 GiB."""

Sample = tuple[float, NDArray[np.int64], NDArray[np.float64]]
"""A label, the indices of features, counted from 0, and their values."""


def read_libsvm(
    path: Path, *, num_features: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the matrix x_NF of all features and the labels y_N of a file; one that ends in .bz2 is unpacked.

    Args:
        path: The file.
        num_features: F; None: the largest index in the file.

    Raises:
        DataError: A line is malformed; the message has the number of the line. Or the file has no samples,
            is damaged, or is too large for a dense matrix.
    """
    samples = list(_samples(path, num_features))
    if not samples:
        raise DataError(f"{path} has no samples; {_FORMAT}")
    found = max((int(at_K[-1]) + 1 for _, at_K, _ in samples if len(at_K)), default=1)
    shape = len(samples), num_features or found
    if shape[0] * shape[1] > _MAX_ELEMENTS:
        raise DataError(
            f"{path} has {shape[0]:,} samples of {shape[1]:,} features; at most {_MAX_ELEMENTS:,} elements "
            "are supported, because the features are stored as a dense matrix: use a smaller file"
        )
    x_NF, y_N = np.zeros(shape), np.empty(shape[0])
    for number, (label, at_K, value_K) in enumerate(samples):
        y_N[number] = label
        x_NF[number, at_K] = value_K
    return x_NF, y_N


def _samples(path: Path, num_features: int | None) -> Iterator[Sample]:
    with ExitStack() as stack:
        file = stack.enter_context(open_regular(path))
        lines = stack.enter_context(bz2.open(file)) if path.suffix == ".bz2" else file
        try:
            for number, line in enumerate(lines, 1):
                if words := line.partition(b"#")[0].strip():
                    try:
                        yield _sample(words, num_features)
                    except ValueError as error:
                        raise DataError(f"{path}, line {number}: {error}; {_FORMAT}") from error
        except (OSError, EOFError) as error:  # from bz2
            raise DataError(f"{path} is damaged: {error}") from error


def _sample(words: bytes, num_features: int | None) -> Sample:
    """Parse a line.

    Raises:
        ValueError: The reason why it is malformed.
    """
    label, *pairs = words.split()
    if not _LINE.fullmatch(words):
        bad = label if b":" in label else next(pair for pair in pairs if not _PAIR.fullmatch(pair))
        what = "label" if bad is label else "pair INDEX:VALUE"
        raise ValueError(f"{_text(bad)} is not a {what}")
    try:
        numbers = np.array(words.replace(b":", b" ").split(), dtype=np.float64)
    except ValueError:
        raise ValueError(f"{_text(next(filter(_is_no_number, [label, *pairs])))} has no number") from None
    if not np.isfinite(numbers).all():
        raise ValueError("a number is not finite")
    index_K, value_K = numbers[1::2], numbers[2::2]
    if len(index_K) and (index_K[0] < 1 or (np.diff(index_K) <= 0).any()):
        raise ValueError("its indices are not in increasing order from 1 on")
    if len(index_K) and index_K[-1] > (num_features or np.iinfo(np.int32).max):
        allowed = f"{num_features} features" if num_features else "2,147,483,647 features at most"
        raise ValueError(f"its index {index_K[-1]:.0f} is too large: there are {allowed}")
    return float(numbers[0]), index_K.astype(np.int64) - 1, value_K


def _is_no_number(word: bytes) -> bool:
    try:
        float(word.rpartition(b":")[2])
    except ValueError:
        return True
    return False


def _text(word: bytes) -> str:
    return shown(word.decode("utf-8", "replace"))
