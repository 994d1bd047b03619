"""ACP-SGD: sends P in even steps and Q in odd steps, in one all-reduce (Zhang et al., ICDCS 2023)."""

from .powersgd import PowerSgd


class Acp(PowerSgd):
    """PowerSGD's two factors in alternate steps: each step is half a power iteration and one all-reduce.

    For a parameter of n × m elements, M = G + E is the rank's gradient plus its residual. Step t is

        t even: Q ← orth(Q);  P = M·Q;   E ← M − P·Qᵀ;  P ← mean of P over ranks
        t odd:  P ← orth(P);  Q = Mᵀ·P;  E ← M − P·Qᵀ;  Q ← mean of Q over ranks

    and the mean is P·Qᵀ (Zhang et al., "Evaluation and Optimization of Gradient Compression for Distributed
    Deep Learning", arXiv 2306.08881; lzhangbv/acpsgd, commit 4f560a2). The residual is that of the rank's own
    factor, so it is M·(I − Q·Qᵀ) or (I − P·Pᵀ)·M, and never longer than M. `powersgd --half` sends the same
    factors and subtracts the mean's product instead, so its residual also holds by how much the rank's factor
    differs from the mean. The means of both are equal up to rounding: only the mean of the residuals enters.

    The rank of 4 is that of the authors' code. Differences from it: orthonormalisation and its `eps`, the
    dense parameters and `start_step` are those of `powersgd` (their code factors every parameter of two
    dimensions or more, by QR); the first Q is drawn with a common seed; the mount decides on buckets and
    overlap.

    Payload bytes per rank: 4·r·n per matrix in even steps and 4·r·m in odd steps, and 4 per element of the
    parameters that are sent dense, in one all-reduce: over two steps half of those of `powersgd`. Before
    `start_step`, 4 per element. The method works per parameter, under any grouping.

    Args:
        rank: Rank r of the product P·Qᵀ, at most n or m; 1 or more.
        start_step: Number of initial steps that use an exact all-reduce, 0 or more.
        min_compression_rate: A matrix is sent dense unless r·(n + m) times this is less than n·m; 0 or more.
        eps: Added to a column's length before dividing by it, at least 0 and below 1.
        sample_seed: Seed of the initial factors, which also depend on the parameter's number in the model.

    Raises:
        ValueError: if an option is out of range.
    """

    later = frozenset()
    keeps_own_error = True

    def __init__(
        self,
        *,
        rank: int = 4,
        start_step: int = 0,
        min_compression_rate: float = 2.0,
        eps: float = 1e-8,
        sample_seed: int = 0,
    ) -> None:
        super().__init__(
            rank=rank,
            start_step=start_step,
            min_compression_rate=min_compression_rate,
            eps=eps,
            half=True,
            sample_seed=sample_seed,
        )


REDUCER = Acp
