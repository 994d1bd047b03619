"""The two collectives of one unit of FSDP2 with their state: the all-gather and the reduce-scatter."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sage.comm.wire import Wire
from sage.reduction.shard_exchange import ReduceScatter, ShardOptions
from sage.reduction.shard_gather import gather_of

GATHERED = "gathered"
"""Key of the all-gather's state, beside those of the reduce-scatter's."""


class ShardUnit:
    """The collectives of a module's parameters, which FSDP2 gathers and reduces together.

    Args:
        options: Formats and levels.
        whole: Wire of all ranks that share a replica.
        levels: Wires within a node and between nodes, if there are two levels.
        number: Number of the unit, on which random rounding depends.
    """

    def __init__(self, options: ShardOptions, whole: Wire, levels: Sequence[Wire], number: int) -> None:
        self.gather = gather_of(options, whole)
        """The all-gather of parameters."""
        self.scatter = ReduceScatter(options, whole, levels, unit=number)
        """The reduce-scatter of gradients."""

    def forget(self) -> None:
        """Begin anew, as after the parameters were replaced: errors are 0, the next gather sends all."""
        self.scatter.drop_errors()
        self.gather.forget()

    def save(self) -> tuple[Any, Any]:
        """Return the state, for `put_back`; nothing is copied."""
        return self.scatter.save(), self.gather.save()

    def put_back(self, saved: tuple[Any, Any]) -> None:
        """Restore what `save` returned."""
        self.scatter.put_back(saved[0])
        self.gather.put_back(saved[1])

    def state_dict(self) -> dict[str, Any]:
        """State of this rank; empty if both collectives are `exact`."""
        gathered = self.gather.state_dict()
        return {**self.scatter.state_dict(), **({GATHERED: gathered} if gathered else {})}

    def load_state_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned; a collective call.

        Raises:
            ValueError: if it is that of another format.
        """
        of_scatter = {name: value for name, value in saved.items() if name != GATHERED}
        self.scatter.load_state_dict(of_scatter, device)
        self.gather.load_state_dict(saved.get(GATHERED, {}), device)
