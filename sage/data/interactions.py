"""Implicit feedback (user, item, time), split and sampled as in neural collaborative filtering.

The protocol is that of He, Liao, Zhang, Nie, Hu, Chua, *Neural Collaborative Filtering*, 2017
(https://arxiv.org/abs/1708.05031, sections 2.1 and 4.1): every interaction of a user with an item is a
positive, with any rating; the latest positive of each user is held out and ranked among sampled items
that the user has no interaction with; every epoch draws new negatives for each of the other positives.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sage.data.dataset import Batch, count_steps, epoch_generator, shard

# N = interactions, P = interactions in the training set, U = users, B = samples of a batch
# S = samples per positive: itself, then its negatives; M = S·P, the samples of an epoch
# C = candidates per test user: the held-out item, then the others

_TEST_SEED = 0  # not an option, so that every run ranks the same candidates


class Interactions:
    """A data set of (user, item) pairs: the latest pair of every user for testing, the rest for training.

    An epoch contains every positive and its negatives, shuffled. Each rank draws the whole epoch from (seed,
    epoch) and takes its own share, so the shares are disjoint without communication. This costs memory per
    rank: 16 bytes for each of the P positives, 8 for each of the M samples, and about 40·P temporarily while
    the samples are drawn. For MovieLens 20M with 4 negatives (P = 20 million) that is 2 GB per rank.

    A negative is an item that is not among the user's training items, so it may be the held-out item, as in
    the paper's code: if the training set excluded that item, it would leak the test item.

    Args:
        user_N: user ids >= 0, not necessarily dense; they are renumbered from 0 in the same order.
        item_N: item ids, likewise.
        time_N: timestamps; for equal times the later row counts as the later one.
        minimum: users with fewer distinct items are dropped; only the latest of repeated pairs is kept.
        negatives: items drawn per positive and epoch, among those that are not training items of the user.
        test_negatives: items that the held-out one is ranked among, drawn once for all runs, among those the
            user has no interaction with.
        checksums: the sha256 of the files that the arrays were read from, by file name.
    """

    def __init__(
        self,
        user_N: Tensor,
        item_N: Tensor,
        time_N: Tensor,
        *,
        minimum: int = 20,
        negatives: int = 4,
        test_negatives: int = 100,
        checksums: dict[str, str],
    ) -> None:
        for name, value, least in (
            ("minimum", minimum, 2),  # one item to hold out, one to train on
            ("negatives", negatives, 0),
            ("test_negatives", test_negatives, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}: give a whole number of at least {least}")
        user_N, item_N = _clean_up(user_N, item_N, time_N, minimum)
        num_users, num_items = int(user_N.max()) + 1, int(item_N.max()) + 1
        latest_N = _last_of_run(user_N)

        self.facts = {"num_users": num_users, "num_items": num_items}
        self.checksums = checksums
        self._user_P, self._item_P = user_N[~latest_N], item_N[~latest_N]
        self._samples = 1 + negatives
        self._untrained = _Unmet(self._user_P, self._item_P, num_users, num_items)
        never_met = _Unmet(user_N, item_N, num_users, num_items)
        self._items_UC = _candidates(item_N[latest_N], never_met, test_negatives)
        self._duplicate_UC = repeats(self._items_UC)

    def num_steps(self, *, batch_size: int, world_size: int) -> int:
        """Count the batches of an epoch; the number is the same on every rank."""
        return count_steps(self._samples * len(self._user_P), world_size=world_size, batch_size=batch_size)

    def train_batches(
        self, *, epoch: int, rank: int, world_size: int, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """Yield (user_B, item_B, label_B); the label is 1 for a positive and 0 for a negative."""
        generator = epoch_generator(seed, epoch)
        items_PS = self._item_P[:, None].repeat(1, self._samples)
        for column in range(1, self._samples):
            items_PS[:, column] = self._untrained.draw(self._user_P, generator)
        order_M = torch.randperm(items_PS.numel(), dtype=torch.int32, generator=generator)
        for sample_B in shard(order_M, rank, world_size, batch_size)[start:]:
            user_B = self._user_P[sample_B // self._samples]
            label_B = (sample_B % self._samples == 0).float()
            yield user_B.long(), items_PS.view(-1)[sample_B].long(), label_B

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield (user_U, items_UC, duplicate_UC) for every `world_size`-th user, the held-out item first."""
        num_users, stride = self.facts["num_users"], world_size * batch_size
        for first in range(rank, num_users, stride):
            user_U = torch.arange(first, min(first + stride, num_users), world_size)
            yield user_U, self._items_UC[user_U].long(), self._duplicate_UC[user_U]


class _Unmet:
    """Draws unmet items of a user, those without a pair with the user, uniformly and without rejection.

    With a user's items in ascending order, the j-th (from 0) has item_j - j unmet items below it. So the k-th
    unmet item is k plus the number of j with item_j - j <= k, which one search in the sorted keys finds.
    """

    def __init__(self, user_P: Tensor, item_P: Tensor, num_users: int, num_items: int) -> None:
        pair_P = (user_P.long() * num_items + item_P).sort().values
        met_U = torch.bincount(user_P, minlength=num_users)
        self._first_U = met_U.cumsum(0) - met_U
        self._key_P = pair_P - torch.arange(len(pair_P)) + self._first_U.repeat_interleave(met_U)
        self._num_items = num_items
        self.count_U = num_items - met_U
        """Number of unmet items of each user."""

    def draw(self, user_B: Tensor, generator: torch.Generator) -> Tensor:
        """Draw an unmet item for each of the given users; each must have at least one."""
        user_B = user_B.long()
        uniform_B = torch.rand(len(user_B), dtype=torch.float64, generator=generator)
        nth_B = (uniform_B * self.count_U[user_B]).long()
        below_B = torch.searchsorted(self._key_P, user_B * self._num_items + nth_B, right=True)
        return nth_B + below_B - self._first_U[user_B]


def repeats(items_UC: Tensor) -> Tensor:
    """Mark the entries that repeat an earlier column of their row.

    >>> repeats(torch.tensor([[7, 3, 7, 3, 5]]))
    tensor([[False, False,  True,  True, False]])
    """
    ranked_UC, column_UC = items_UC.sort(dim=1, stable=True)
    again_UC = torch.zeros_like(ranked_UC, dtype=torch.bool)
    again_UC[:, 1:] = ranked_UC[:, 1:] == ranked_UC[:, :-1]
    return torch.zeros_like(again_UC).scatter_(1, column_UC, again_UC)


def _candidates(held_out_U: Tensor, unmet: _Unmet, test_negatives: int) -> Tensor:
    """Return each user's test candidates: the held-out item first, then items the user has not met.

    A user who has met every item gets the held-out item repeated; the duplicate mask then excludes it.
    """
    items_UC = held_out_U[:, None].repeat(1, 1 + test_negatives)
    (user_V,) = torch.nonzero(unmet.count_U, as_tuple=True)  # V = the users with an item left
    drawn = unmet.draw(user_V.repeat_interleave(test_negatives), torch.Generator().manual_seed(_TEST_SEED))
    items_UC[user_V, 1:] = drawn.view(-1, test_negatives).to(items_UC.dtype)
    return items_UC


def _clean_up(user_N: Tensor, item_N: Tensor, time_N: Tensor, minimum: int) -> tuple[Tensor, Tensor]:
    """Drop repeated pairs and users with few items, make ids dense, and sort by user and time."""
    order_N = time_N.argsort(stable=True)  # stable: for equal times, the order of the rows is kept
    order_N = order_N[user_N[order_N].argsort(stable=True)]
    user_N, item_N = _dense(user_N[order_N]), _dense(item_N[order_N])
    pair_N, place_N = (user_N.long() * len(item_N) + item_N).sort(stable=True)
    kept_N = place_N[_last_of_run(pair_N)].sort().values
    user_N, item_N = user_N[kept_N], item_N[kept_N]
    met_U = user_N.bincount()
    enough_N = (met_U >= minimum)[user_N]
    if not enough_N.any():
        raise ValueError(f"minimum is {minimum}, but no user has so many items: give at most {met_U.max()}")
    return _dense(user_N[enough_N]), _dense(item_N[enough_N])


def _dense(id_N: Tensor) -> Tensor:
    """Renumber ids from 0 without gaps, in the same order."""
    return (id_N.bincount() > 0).cumsum(0, dtype=torch.int32)[id_N] - 1


def _last_of_run(sorted_N: Tensor) -> Tensor:
    """Mark the last entry of every run of equal entries."""
    last_N = torch.ones(len(sorted_N), dtype=torch.bool)
    last_N[:-1] = sorted_N[1:] != sorted_N[:-1]
    return last_N
