"""Estimates of gradients in the saved state of ranks, for another number of ranks."""

from collections.abc import Iterable
from typing import Any

PART = "/part"
"""The key in a rank's feedback state of the part of the gradient to which it belongs; no parameter's name."""
OWN, COMMON = "estimator.own_N", "estimator.common_N"
"""Estimate of a rank's gradient, and the mean of all ranks' (`sage.reduction.estimators`)."""

AVERAGED = ("estimator.average_N", "estimator.error_N")
"""What a rank keeps beside its estimate."""

State = dict[str, Any]


def has_estimates(feedback: State) -> bool:
    """Whether a rank's error-feedback state has estimates of gradients."""
    return any(
        has_estimates(value) if isinstance(value, dict) else name == OWN for name, value in feedback.items()
    )


def with_means(feedback: State, every: Iterable[State]) -> State:
    """Return a rank's error-feedback state with the means over ranks in place of its estimates.

    The rank's estimate becomes h, the mean of the old estimates, so that h is also the mean of the new ones,
    to the bit.

    Args:
        feedback: The state of any one of the old ranks with this rank's part of the gradient.
        every: The state of each old rank; those with another part are left out.
    """
    total, count = feedback, 0
    for theirs in every:
        if theirs.get(PART) == feedback.get(PART):
            total, count = _added(total, theirs) if count else theirs, count + 1
    return _averaged(feedback, total, count)


def _added(total: State, theirs: State) -> State:
    return {
        name: _added(was, theirs[name])
        if isinstance(was, dict)
        else was + theirs[name]
        if name in AVERAGED
        else was
        for name, was in total.items()
    }


def _averaged(feedback: State, total: State, count: int) -> State:
    averaged = dict(feedback)
    for name, was in feedback.items():
        if isinstance(was, dict):
            averaged[name] = _averaged(was, total[name], count)
        elif name in AVERAGED:
            averaged[name] = total[name] / count
        elif name == OWN:
            averaged[name] = feedback[COMMON].clone()
    return averaged
