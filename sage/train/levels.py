"""The levels on which a run reduces: `--hierarchy`."""

from collections.abc import Mapping
from typing import Any

import torch

from sage.comm.levels import Levels, by_host, levels
from sage.comm.wire import Wire
from sage.config import Config, neighbours
from sage.mount.estimates import PART
from sage.mount.flat import Flat
from sage.records.manifest import host

WHOLE = "part 0 of 1"
"""The part that is the whole gradient; the state of a flat run does not have it."""


def levels_of(config: Config, wire: Wire, device: torch.device) -> Levels | None:
    """Return the wires of the two levels; None if the run is flat, or each node has one rank.

    A collective call with `--hierarchy node`.

    Args:
        config: The run.
        wire: The communicator of all ranks.
        device: Device of the gradients.

    Raises:
        ValueError: Not all nodes have the same number of ranks; raised on every rank.
    """
    if config.hierarchy == "flat":
        return None
    if config.ranks_per_node is None:
        nodes = by_host(wire.texts(host()))
    else:
        nodes = neighbours(wire.world_size, config.ranks_per_node)
    return levels(wire, nodes, device)


def with_part(feedback: dict[str, Any], flat: Flat) -> dict[str, Any]:
    """Return a rank's state of reducers and error feedback with the part to which it belongs."""
    return feedback if flat.place == WHOLE else {**feedback, PART: flat.place}


def without_part(feedback: Mapping[str, Any], flat: Flat) -> dict[str, Any]:
    """Return the state that was passed to `with_part`.

    Raises:
        ValueError: It belongs to another part than this rank's.
    """
    part = feedback.get(PART, WHOLE)
    if part != flat.place:
        raise ValueError(
            f"it has {part} of the gradient, and this rank {flat.place}: start as many ranks on each node "
            "as the checkpoint's run had, in the same order"
        )
    return {name: value for name, value in feedback.items() if name != PART}
