"""ATOMO: sends randomly drawn singular values of each layer, unbiased (Wang et al., NeurIPS 2018)."""
# K = singular values of a matrix, k = the number drawn

from typing import Unpack

import torch
from torch import Tensor

from sage.reduction import Matrix, Wire, generator

from .svd import DecompositionOptions, Svd


class Atomo(Svd):
    """As `svd`, but each singular value σ is sent with probability p, as σ/p (the paper's spectral ATOMO).

    p = min(1, c·σ), where c is chosen so that r values are sent on average. This is Algorithm 1 of the paper;
    it has the smallest variance of all unbiased draws of that size. The implementation follows the paper and
    was not compared with the authors' code. Parameters of one dimension, and those that rank r would not
    shorten, are sent dense.

    The number of values drawn differs between steps and ranks. In addition to the payload bytes of `svd`,
    each rank sends 4 bytes per matrix for the number drawn and 24 bytes for three lengths (`sizes`). A value
    is sent multiplied by 1/p, so a residual can grow without bound; by default there is none. With
    `decomposition=randomised` the draw is among the r + `oversampling` values found, and unbiased for the
    approximation by these alone: without a residual, the rest of the matrix is lost.

    Args:
        rank: Average number r of singular values sent per matrix, at most n or m; 1 or more.
        min_compression_rate: A matrix is sent dense unless r·(n + m) times this is less than n·m; 0 or more.
        sample_seed: Seed of the draws; each rank, step and parameter has its own numbers.

    Raises:
        ValueError: if an option is out of range.
    """

    memory = "none"
    even = False
    precision = 2.0**-16

    later = frozenset({"decomposition", "oversampling", "power_iterations"})

    def __init__(
        self,
        *,
        rank: int = 1,
        min_compression_rate: float = 2.0,
        sample_seed: int = 0,
        **decomposition: Unpack[DecompositionOptions],
    ) -> None:
        super().__init__(
            rank=rank, min_compression_rate=min_compression_rate, sample_seed=sample_seed, **decomposition
        )
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def begin(self, wire: Wire) -> None:
        self._now = int(self.step), wire.stream
        self.step += 1

    def choose(self, s_k: Tensor, x: Matrix) -> tuple[Tensor, Tensor]:
        p_K = probabilities(s_k, x.rank)
        rng = generator(self._seed, *self._now, x.number)
        rand_K = torch.rand(p_K.shape, generator=rng).to(p_K.device)
        at_k = (~(rand_K >= p_K)).nonzero().view(-1)  # NaN is always sent
        return at_k, s_k[at_k] / p_K[at_k]

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        return None


def probabilities(s_K: Tensor, rank: int) -> Tensor:
    """min(1, c·σ) for descending singular values, with c such that they sum to `rank` where possible."""
    # While the largest remaining value would get more than 1, it gets 1; the others share the remainder.
    tail_K = s_K.flip(0).cumsum(0).flip(0)
    place_K = torch.arange(s_K.numel(), device=s_K.device)
    sure_K = ((rank - place_K) * s_K >= tail_K).cumprod(0).bool() & (s_K > 0)
    num_sure = sure_K.sum()
    rest = torch.where(sure_K, 0, s_K).sum()
    p_K = (rank - num_sure) * s_K / torch.where(rest > 0, rest, 1)
    return torch.where(sure_K, 1.0, p_K.clamp(0, 1))


REDUCER = Atomo
