"""hadamard: an orthonormal transform before a quantiser, as in hadamard+int8 (Suresh et al., ICML 2017)."""
# N = elements of the vector

from collections.abc import Sequence

from torch import Tensor

from sage.reduction import Transform, ops, seed_at


class Hadamard(Transform):
    """Each block x of L elements becomes H·D·x/√L, of random signs D and the Walsh-Hadamard matrix H.

    The randomised rotation of Suresh et al. (ICML 2017, arXiv 1611.00429). Composed with any quantiser, as in
    `hadamard+qsgd`, it spreads an element that is much larger than the others over its block, so that the
    elements of a block have about the same size; `thc` has the same transform. The signs
    follow from the seed alone: they are the same on every rank and in every step. The last block of a group
    is cut into parts whose lengths are powers of two. An unbiased quantiser remains unbiased, and the squared
    error is the quantiser's, as the transform is orthonormal. Alone, it is a dense all-reduce of the
    transformed vector. Payload bytes per rank: 4 per element; composed, those of the quantiser.

    Args:
        hadamard_block: Number of elements L that are transformed together: a power of two from 16 to 8192.
        hadamard_seed: Seed of the signs.

    Raises:
        ValueError: if `hadamard_block` is none of these.
    """

    def __init__(self, *, hadamard_block: int = 4096, hadamard_seed: int = 0) -> None:
        super().__init__()
        if hadamard_block not in ops.HADAMARD_BLOCKS:
            raise ValueError(f"hadamard_block={hadamard_block!r}: expected a power of two from 16 to 8192")
        self._block, self._key = hadamard_block, seed_at(hadamard_seed)

    def transform(self, x_N: Tensor, sizes: Sequence[int], *, inverse: bool = False) -> Tensor:
        return ops.hadamard(x_N, sizes, self._block, key=self._key, inverse=inverse)


REDUCER = Hadamard
