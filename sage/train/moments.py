"""Averages of the moments of Adam over ranks, at periods of their own (DES-LOC).

DES-LOC (Iacob et al. 2025, https://arxiv.org/abs/2505.22549) averages the parameters every K local steps, the
first moment every 3K and the second every 6K. This follows the abstract; whether the paper averages moments
before or after the update of their step is unverified. Here it is after.
"""
# N = elements of one moment of all parameters

from collections.abc import Mapping

import torch
from torch import Tensor

from sage.comm.wire import Wire
from sage.config import Config

FIRST, SECOND = "exp_avg", "exp_avg_sq"
"""The moments by their names in torch's Adam and AdamW."""


class Moments:
    """The moments of the inner optimisers of all ranks.

    Args:
        optimizer: This rank's Adam or AdamW.
        wire: The communicator.
        periods: Local steps between two averages, by the name of the moment.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, wire: Wire, periods: Mapping[str, int]) -> None:
        self._optimizer, self._wire, self._periods = optimizer, wire, periods

    @torch.no_grad()
    def average(self, clock: int) -> bool:
        """Replace moments whose period has ended by their dense mean over ranks (`moments` in the ledger).

        A rank that has not taken a step yet counts with zeros.

        Args:
            clock: Number of local steps so far.

        Returns:
            Whether any moment was averaged; the same on all ranks.
        """
        due = [name for name, period in self._periods.items() if clock % period == 0]
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        for name in due:
            own: list[Tensor | None] = [self._optimizer.state.get(p, {}).get(name) for p in parameters]
            pieces = [torch.zeros_like(p) if x is None else x for x, p in zip(own, parameters, strict=True)]
            mean_N = self._wire.mean(torch.cat([piece.reshape(-1) for piece in pieces]), kind="moments")
            for x, mean in zip(own, mean_N.split([piece.numel() for piece in pieces]), strict=True):
                if x is not None:
                    x.copy_(mean.view_as(x))
        return bool(due)


def moments_of(config: Config, optimizer: torch.optim.Optimizer, wire: Wire) -> Moments | None:
    """Return the averages that a configuration asks for; None if it asks for none."""
    periods = {FIRST: config.first_moment_steps, SECOND: config.second_moment_steps}
    given = {name: period for name, period in periods.items() if period is not None}
    return Moments(optimizer, wire, given) if given else None
