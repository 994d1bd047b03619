"""ATOMO: singular values of each layer drawn at random, so that the mean is unbiased (Wang et al., 2018)."""
# K = singular values of a matrix, k = those that are drawn

import torch
from torch import Tensor

from sage.reduction import Matrix, Wire, generator

from .svd import Svd


class Atomo(Svd):
    """As `svd`, but each singular value σ is sent with probability p, as σ/p (the paper's spectral ATOMO).

    p = min(1, c·σ), with c such that r of them are sent on average: the paper's algorithm 1, which has the
    least variance of all unbiased draws of that many. It follows the paper and was not compared with the
    authors' code. Parameters of one dimension, and those that rank r would not shorten, go dense.

    The number drawn differs by step and rank. Beside the bytes of `svd`, each rank hands over 4 bytes a
    matrix for their number and 24 for three lengths (`sizes`). A value is sent larger than it is, by 1/p, so
    that a residual need not stay bounded: by default there is none.

    Args:
        rank: Singular values r of a matrix to send on average, or n or m where that is less; 1 or more.
        min_compression_rate: A matrix goes dense unless r·(n + m) times this is less than n·m; 0 or more.
        sample_seed: Of the draws; each rank and step has its own.
    """

    memory = "none"
    even = False
    precision = 2.0**-16

    step: Tensor

    def __init__(self, *, rank: int = 1, min_compression_rate: float = 2.0, sample_seed: int = 0) -> None:
        super().__init__(rank=rank, min_compression_rate=min_compression_rate)
        self._seed = sample_seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def begin(self, wire: Wire) -> None:
        self._dice = generator(self._seed, int(self.step), wire.rank)
        self.step += 1

    def choose(self, s_k: Tensor, x: Matrix) -> tuple[Tensor, Tensor]:
        p_K = probabilities(s_k, x.rank)
        rand_K = torch.rand(p_K.shape, generator=self._dice).to(p_K.device)
        at_k = (~(rand_K >= p_K)).nonzero().view(-1)  # NaN is always sent
        return at_k, s_k[at_k] / p_K[at_k]

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        return None


def probabilities(s_K: Tensor, rank: int) -> Tensor:
    """min(1, c·σ) of descending singular values, with c such that they add up to the rank where they can."""
    # While the first of the rest would have more than 1, it gets 1, and the rest share what is left.
    tail_K = s_K.flip(0).cumsum(0).flip(0)
    place_K = torch.arange(s_K.numel(), device=s_K.device)
    sure_K = ((rank - place_K) * s_K >= tail_K).cumprod(0).bool() & (s_K > 0)
    num_sure = sure_K.sum()
    rest = torch.where(sure_K, 0, s_K).sum()
    p_K = (rank - num_sure) * s_K / torch.where(rest > 0, rest, 1)
    return torch.where(sure_K, 1.0, p_K.clamp(0, 1))


REDUCER = Atomo
