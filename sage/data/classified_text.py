"""Labelled texts as token ids of a fixed length, with a vocabulary of whole words."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from sage.data.dataset import Batch, check_limit, count_steps, epoch_generator, shard, share

# N = texts, S = steps in an epoch, B = texts in a batch, T = tokens of a text

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
"""The first tokens of a vocabulary: padding, a word that is not in it, and the ends of a text."""

_PAD, _UNK, _CLS, _SEP = range(len(SPECIAL))

Texts = Sequence[tuple[str, int]]
"""Pairs of a text and its class, counted from 0."""


class ClassifiedText:
    """A `sage.data.dataset.Dataset` of labelled texts, whose batches are (ids_BT, classes_B).

    A text is `[CLS]`, its first tokens, `[SEP]`, and `[PAD]` (id 0) up to the length.
    """

    def __init__(
        self,
        *,
        train: Texts,
        test: Texts,
        num_classes: int,
        length: int,
        checksums: dict[str, str],
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """Number the words; a limit keeps only the first texts and does not change the vocabulary.

        Args:
            length: T, tokens of a text with `[CLS]` and `[SEP]`; the end of a longer text is dropped.
        """
        self.vocabulary = vocabulary(text for text, _ in train)
        number = {token: index for index, token in enumerate(self.vocabulary)}
        kept = (first(limit_train, train, "limit_train"), first(limit_test, test, "limit_test"))
        (self.train_NT, self.train_N), (self.test_NT, self.test_N) = (
            (
                torch.tensor([encoded(text, number, length) for text, _ in texts]),
                torch.tensor([label for _, label in texts]),
            )
            for texts in kept
        )
        self.checksums = checksums
        self.facts = {"num_classes": num_classes, "vocab_size": len(self.vocabulary)}

    def num_steps(self, *, batch_size: int, world_size: int) -> int:
        """Count the batches of an epoch; the number is the same on every rank."""
        return count_steps(len(self.train_N), world_size=world_size, batch_size=batch_size)

    def train_batches(
        self, *, epoch: int, rank: int, world_size: int, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch from batch `start` on; each epoch is shuffled anew."""
        order_N = torch.randperm(len(self.train_N), generator=epoch_generator(seed, epoch))
        for order_B in shard(order_N, rank, world_size, batch_size)[start:]:
            yield self.train_NT[order_B], self.train_N[order_B]

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield this rank's share of the test set, in order; the last batch may be short."""
        own = share(len(self.test_N), rank=rank, world_size=world_size)
        for begin in range(own.start, own.stop, batch_size):
            batch = slice(begin, min(begin + batch_size, own.stop))
            yield self.test_NT[batch], self.test_N[batch]


def words(text: str) -> list[str]:
    """Split a text into lower-case words and punctuation.

    >>> words("Don't stop.")
    ['don', "'", 't', 'stop', '.']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())


def vocabulary(texts: Iterator[str], *, min_freq: int = 2) -> list[str]:
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


def first(limit: int | None, texts: Texts, option: str) -> Texts:
    """Return the first texts, or all of them without a limit.

    Raises:
        ValueError: There are fewer texts; the message names the option.
    """
    check_limit(limit, len(texts), option, of="texts")
    return texts[:limit]
