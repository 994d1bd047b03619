"""A vocabulary of whole words, made from the training texts: it needs no file."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# N = texts, T = tokens of a text

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
"""The first tokens of a vocabulary: padding, a word that is not in it, and the ends of a text."""

_PAD, _UNK, _CLS, _SEP = range(len(SPECIAL))


class WholeWords:
    """Tokenizes by the lower-case words and punctuation that occur at least twice in the training texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.vocabulary = vocabulary(texts)
        self._number = {token: index for index, token in enumerate(self.vocabulary)}

    def ids(self, texts: Sequence[str], length: int) -> Tensor:
        """Return the ids of texts, int32, of shape (N, T): truncated at their end or padded to `length`."""
        return torch.tensor([encoded(text, self._number, length) for text in texts], dtype=torch.int32)


def words(text: str) -> list[str]:
    """Split a text into lower-case words and punctuation.

    >>> words("Don't stop.")
    ['don', "'", 't', 'stop', '.']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())


def vocabulary(texts: Iterable[str], *, min_freq: int = 2) -> list[str]:
    """Return the special tokens, then the words with at least `min_freq` occurrences, frequent ones first.

    Words of equal frequency are in alphabetical order, so every process gets the same vocabulary.
    """
    counts = Counter(word for text in texts for word in words(text))
    kept = [(-count, word) for word, count in counts.items() if count >= min_freq]
    return [*SPECIAL, *(word for _, word in sorted(kept))]


def encoded(text: str, number: dict[str, int], length: int) -> list[int]:
    """Return the ids of a text, truncated at its end or padded to `length`.

    >>> encoded("a b c", {"a": 4, "b": 5}, 4), encoded("c", {}, 4)
    ([2, 4, 5, 3], [2, 1, 3, 0])
    """
    ids = [_CLS, *(number.get(word, _UNK) for word in words(text)[: length - 2]), _SEP]
    return ids + [_PAD] * (length - len(ids))
