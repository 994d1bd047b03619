"""Divides the state of reducers and error feedback between another number of ranks.

Each old rank is assigned to the new rank with its number modulo the new number of ranks, which adds up the
residuals of those assigned to it: the sum over all ranks stays the same. Estimates of gradients are not
added: each new rank has the mean of them.
"""
# W = ranks that have saved their state

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sage.mount.estimates import PART, has_estimates, with_means

SUMMED = ("residual_N", "velocity_N", "reducer.served_N")
"""Unsent gradient state: its sum over the ranks must stay the same when the world size changes."""

IN_8_BITS = ("loco.codes_N", "loco.scale_P")
"""The error of the memory `loco`, which is not added: it is kept if one old rank's is taken over, else 0."""

State = dict[str, Any]


def assigned(rank: int, num_ranks: int, num_before: int) -> range:
    """Return the old ranks whose residuals a new rank takes over.

    >>> [[*assigned(rank, 2, 5)] for rank in range(2)], [[*assigned(rank, 3, 2)] for rank in range(3)]
    ([[0, 2, 4], [1, 3]], [[0], [1], []])
    """
    return range(rank, num_before, num_ranks)


def added(nearest: Mapping[str, Any], taken_over: Sequence[Mapping[str, Any]]) -> State:
    """Return a rank's state: that of `nearest`, but with `SUMMED` summed over `taken_over`.

    The state may be divided by parameter.

    Raises:
        ValueError: The states are of different parts of the gradient.
    """
    feedback = dict(nearest)
    for name, was in nearest.items():
        if name == PART and any(theirs[name] != was for theirs in taken_over):
            raise ValueError("the ranks whose residuals would be added have different parts of the gradient")
        if isinstance(was, dict):
            feedback[name] = added(was, [theirs[name] for theirs in taken_over])
        elif name in SUMMED and isinstance(was, Tensor):
            feedback[name] = sum((theirs[name] for theirs in taken_over), torch.zeros_like(was))
        elif name in IN_8_BITS:
            feedback[name] = taken_over[0][name] if len(taken_over) == 1 else torch.zeros_like(was)
    return feedback


@dataclass(frozen=True)
class ByRank:
    """The states of ranks, each under a name of its own, for torch.distributed.checkpoint.

    A state is a dictionary of dictionaries of tensors, such as the state by parameter of `sage.mount.state`.
    """

    rank: int
    """This rank."""
    num_ranks: int
    """Number of ranks."""
    place: str = ""
    """Which part of the gradient the state is of, if other ranks with this number have other parts."""
    is_fixed: bool = False
    """Whether the parts depend on the number of ranks, so that another number does not fit."""

    def key_of(self, rank: int, num_ranks: int) -> str:
        """Return the name of a rank's state.

        >>> ByRank(0, 2).key_of(1, 2), ByRank(0, 2, "shard 1 of 4").key_of(0, 3)
        ('rank 1 of 2', 'rank 0 of 3, shard 1 of 4')
        """
        return f"rank {rank} of {num_ranks}" + (f", {self.place}" if self.place else "")

    def to_save(self, own: State) -> dict[str, State]:
        """Return this rank's state under its name."""
        return {self.key_of(self.rank, self.num_ranks): own}

    def to_load(self, own: State, num_before: int) -> dict[str, State]:
        """Return tensors, not filled, for the states that this rank needs of those that have saved theirs.

        Raises:
            ValueError: if the number of ranks that have saved them is not positive or does not fit.
        """
        needed = self._needed(own, num_before)
        return {
            self.key_of(rank, num_before): {
                name: {key: torch.zeros_like(x) for key, x in part.items()} for name, part in own.items()
            }
            for rank in needed
        }

    def combined(self, saved: Mapping[str, State]) -> State:
        """Return this rank's state from the tensors of `to_load` or `to_save`, after they were filled.

        Raises:
            ValueError: if the state of a rank is missing.
        """
        found = [re.match(r"rank \d+ of (\d+)", name) for name in saved]
        numbers = {int(match[1]) for match in found if match}
        if len(numbers) != 1 or not all(found):
            raise ValueError(
                f"the state has the names {', '.join(map(repr, saved)) or 'of no rank'}; expected those of "
                "ranks, such as 'rank 0 of 2': give it what state_dict_by_rank returned"
            )
        (num_before,) = numbers
        needed = self._needed(next(iter(saved.values())), num_before)
        lacking = [name for rank in needed if (name := self.key_of(rank, num_before)) not in saved]
        if lacking:
            raise ValueError(
                f"the state of {lacking[0]} is missing, and there is that of {'; '.join(saved)}: load what "
                f"state_dict_by_rank({num_before}) returned on this rank"
            )
        states = {rank: saved[self.key_of(rank, num_before)] for rank in needed}
        nearest = states[self.rank % num_before]
        if num_before == self.num_ranks:
            return nearest
        state = added(nearest, [states[rank] for rank in assigned(self.rank, self.num_ranks, num_before)])
        return with_means(state, states.values()) if has_estimates(state) else state

    def _needed(self, own: State, num_before: int) -> list[int]:
        if num_before < 1:
            raise ValueError(f"the number of ranks that saved the state is {num_before}: expected 1 or more")
        if num_before == self.num_ranks:
            return [self.rank]
        if self.is_fixed:
            raise ValueError(
                f"the state was saved by {num_before} ranks, and with hierarchy='node' each rank's part of "
                f"the gradient depends on their number: load it with {num_before} ranks"
            )
        if has_estimates(own):
            return [*range(num_before)]
        return sorted({self.rank % num_before, *assigned(self.rank, self.num_ranks, num_before)})
