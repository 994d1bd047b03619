"""Labelled texts as token ids of a fixed length."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from sage.data.dataset import Batch, check_limit, count_steps, epoch_generator, shard, share
from sage.data.fetch import DataError

# N = texts, S = steps in an epoch, B = texts in a batch, T = tokens of a text

_CHUNK = 1024
"""Texts that are tokenized at once: a large file is never in memory as text."""

Texts = Iterable[tuple[str, int]]
"""Pairs of a text and its class, counted from 0."""


class Tokenizer(Protocol):
    """What makes token ids of texts."""

    @property
    def vocabulary(self) -> Sequence[str]:
        """The tokens, in the order of their ids; the first is the padding."""
        ...

    def ids(self, texts: Sequence[str], length: int) -> Tensor:
        """Return the ids of texts, int32, of shape (N, T): truncated at their end or padded to `length`."""
        ...


class ClassifiedText:
    """A `sage.data.dataset.Dataset` of labelled texts, whose batches are (ids_BT, classes_B).

    A text is `[CLS]`, its first tokens, `[SEP]`, and `[PAD]` (id 0) up to the length.
    """

    def __init__(
        self,
        *,
        train: Texts,
        test: Texts,
        tokenizer: Tokenizer,
        num_classes: int | None = None,
        length: int,
        checksums: dict[str, str],
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """Tokenize the texts; a limit reads only the first ones.

        Args:
            num_classes: Number of classes; None: as many as the training texts have.
            length: T, tokens of a text with `[CLS]` and `[SEP]`; the end of a longer text is dropped.

        Raises:
            DataError: There are fewer than two classes, or a test text has a class beyond them.
            ValueError: There are fewer texts than a limit.
        """
        self.vocabulary = tokenizer.vocabulary
        self.train_NT, self.train_N = _numbered(train, tokenizer, length, limit_train, "limit_train")
        self.test_NT, self.test_N = _numbered(test, tokenizer, length, limit_test, "limit_test")
        found = 1 + int(self.train_N.max())
        num_classes = found if num_classes is None else num_classes
        if num_classes < 2:
            raise DataError("the training texts have one class: at least two are needed")
        if found > num_classes or int(self.test_N.max()) >= num_classes:
            largest = max(found, 1 + int(self.test_N.max()))
            raise DataError(
                f"a text has class {largest}, counted from 1, and there are {num_classes} classes"
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
            yield self.train_NT[order_B].long(), self.train_N[order_B]

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield this rank's share of the test set, in order; the last batch may be short."""
        own = share(len(self.test_N), rank=rank, world_size=world_size)
        for begin in range(own.start, own.stop, batch_size):
            batch = slice(begin, min(begin + batch_size, own.stop))
            yield self.test_NT[batch].long(), self.test_N[batch]


def _numbered(
    texts: Texts, tokenizer: Tokenizer, length: int, limit: int | None, option: str
) -> tuple[Tensor, Tensor]:
    """Tokenize the first texts; return their ids, of shape (N, T), and their classes.

    Raises:
        ValueError: There are fewer texts than the limit; the message names the option.
    """
    ids, classes = [torch.empty(0, length, dtype=torch.int32)], list[int]()
    left = iter(texts)
    wanted = limit
    while chunk := list(islice(left, _CHUNK if wanted is None else min(_CHUNK, wanted))):
        ids.append(tokenizer.ids([text for text, _ in chunk], length))
        classes += [label for _, label in chunk]
        wanted = None if wanted is None else wanted - len(chunk)
    if not classes and limit is None:
        raise DataError("there are no texts")
    check_limit(limit, len(classes), option, of="texts")
    return torch.cat(ids), torch.tensor(classes)
