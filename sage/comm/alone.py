"""A wire of one rank: a reducer that works by itself, such as a server's, sends nothing."""
# N = elements of a vector, S = bytes of a packed buffer

from collections.abc import Sequence

from torch import Tensor

from sage.comm.transport import Pending
from sage.comm.wire import Wire


class Alone(Wire):
    """The wire of a single rank. Every collective returns this rank's input.

    Args:
        stream: Number of the rank's random numbers (`Transport.stream`); other than those of the ranks that
            encode the same vector.

    >>> import torch
    >>> Alone().mean(torch.tensor([3.0, 4.0]))
    tensor([3., 4.])
    """

    def __init__(self, stream: int = 0) -> None:
        super().__init__(0, 1)
        self.stream = stream

    def _sum(self, x_N: Tensor) -> None:
        pass

    def _sum_halves(self, x_N: Tensor) -> None:
        pass

    def _begin_sum(self, call: str, x_N: Tensor) -> Pending:
        return _Done(x_N)

    # A wire's result belongs to the caller and must not alias the input.

    def _gather(self, x_S: Tensor) -> Tensor:
        return x_S.clone()[None]

    def _gather_in_place(self, all_rows: Sequence[Tensor]) -> None:
        pass

    def _gather_on_host(self, x_S: Tensor) -> Tensor:
        return self._gather(x_S)

    def _gather_ragged(self, x_S: Tensor, sizes: Sequence[int]) -> Tensor:
        return x_S.clone()

    def _fill(self, pieces: Sequence[Tensor]) -> None:
        pass

    def _broadcast(self, x_N: Tensor, root: int) -> None:
        pass

    def _gather_to(self, x_N: Tensor, root: int) -> Tensor:
        return x_N.clone()[None]

    def _reduce_scatter(self, x_WN: Tensor) -> Tensor:
        return x_WN[0].clone()

    def _all_to_all(self, x_WN: Tensor) -> Tensor:
        return x_WN.clone()

    def _all_to_all_ragged(self, x_S: Tensor, sizes: Sequence[Sequence[int]], out_S: Tensor) -> Tensor:
        return out_S.copy_(x_S)


class _Done:
    """A collective that has ended."""

    def __init__(self, x_N: Tensor) -> None:
        self._x_N = x_N

    def wait(self) -> Tensor:
        return self._x_N
