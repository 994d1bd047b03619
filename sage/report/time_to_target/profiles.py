"""Performance profiles (Dolan and Moré, 2002, https://arxiv.org/abs/cs/0102001) relative to a reference.

ρ(τ) is the share of a method's problems whose time is at most τ times the reference's. The denominator is the
reference and not the fastest method, because the ranking by the latter changes when a method is removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_TAU = 4.0
"""A problem that takes longer than this times the reference counts as not solved."""


@dataclass(frozen=True)
class Profile:
    """The step function ρ: it rises at each of `taus` to the share of the same index."""

    taus: tuple[float, ...]
    """Increasing, at most `MAX_TAU`."""
    shares: tuple[float, ...]

    def __call__(self, tau: float) -> float:
        """Return ρ(τ)."""
        return max(
            (share for at, share in zip(self.taus, self.shares, strict=True) if at <= tau), default=0.0
        )

    @property
    def score(self) -> float:
        """The mean of ρ over τ from 1 to `MAX_TAU`; 1 if no problem takes longer than the reference."""
        ends = [*self.taus, MAX_TAU][1:]
        pieces = (
            share * max(0.0, end - max(at, 1.0))
            for at, end, share in zip(self.taus, ends, self.shares, strict=True)
        )
        return sum(pieces) / (MAX_TAU - 1)


def profile(ratios: Sequence[float]) -> Profile:
    """Return the profile of ratios to the reference, one per problem; infinity is a problem not solved.

    Raises:
        ValueError: if there are no ratios.

    >>> found = profile([0.5, 2.0, 2.0, float("inf")])
    >>> found.taus, found.shares, found(1.0), found.score
    ((0.5, 2.0), (0.25, 0.75), 0.25, 0.5833333333333334)
    """
    if not ratios:
        raise ValueError("a performance profile needs at least one ratio; none were given")
    taus = sorted({ratio for ratio in ratios if ratio <= MAX_TAU})
    shares = [sum(ratio <= tau for ratio in ratios) / len(ratios) for tau in taus]
    return Profile(tuple(taus), tuple(shares))
