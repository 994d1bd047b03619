"""What the commands of `sage bench` need of recorded gradients, whatever file they are in."""
# N = elements kept of each gradient

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """A parameter: its number of elements, and the positions of those that were kept, [start, stop) of N."""

    name: str
    numel: int
    start: int
    stop: int


class Gradients(Protocol):
    """The gradients of a run by step and rank."""

    @property
    def name(self) -> str:
        """The workload's name, for tables."""
        ...

    @property
    def first(self) -> int:
        """The run's step of the first gradient."""
        ...

    @property
    def numel(self) -> int:
        """Number of elements of the whole vector."""
        ...

    @property
    def elements(self) -> int:
        """Number of elements kept of each gradient, N."""
        ...

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        ...

    @property
    def drop(self) -> int | None:
        """The first index at which a milestone has lowered the learning rate to half or less, or None."""
        ...

    @property
    def layers(self) -> list[Layer]:
        """The parameters in the order of the vector; empty if they are not known."""
        ...

    def __len__(self) -> int:
        """Number of steps."""
        ...

    def number(self, step: int) -> int:
        """The run's step of the gradient at this index."""
        ...

    def gradient(self, step: int, rank: int) -> Tensor:
        """One rank's gradient (N) at one index, as float32."""
        ...
