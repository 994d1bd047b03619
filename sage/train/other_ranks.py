"""Divides the state of a checkpoint's ranks between another number of ranks."""

from typing import Any

from sage.mount.estimates import has_estimates, with_means
from sage.mount.other_ranks import added, assigned
from sage.train import checkpoint

State = dict[str, Any]


def leave_round(own: State) -> int:
    """Drop a rank's weights within a round, so that it starts from those that all ranks have in common.

    Returns the number of local steps that are lost.
    """
    local = own.get("local")
    if local is None:
        return 0
    own["local"] = {**local, "taken": 0, "largest_lr": 0.0, "weights": {}}
    lost: int = local["taken"]
    return lost


def taken_over(
    found: checkpoint.Found, nearest: State, *, rank: int, world_size: int, shards: int = 1
) -> State:
    """Return a rank's error-feedback state, from those of all ranks that wrote a checkpoint.

    Each rank of the checkpoint is assigned to exactly one rank of this run. Estimates of gradients are not
    added: with another number of ranks, each has the mean of them.

    Args:
        found: The checkpoint.
        nearest: The error-feedback state of the checkpoint's rank with this rank's number modulo its ranks.
        rank, world_size: This rank, and the number of ranks of this run.
        shards: Number of neighbouring ranks that shard a replica.
    """
    ranks = assigned(rank, world_size, found.world_size)
    theirs = [checkpoint.load_own(found.path, other)["feedback"] for other in ranks]
    feedback = added(nearest, theirs)
    if found.world_size == world_size or not has_estimates(feedback):
        return feedback
    alike = range(rank % shards, found.world_size, shards)
    return with_means(feedback, (checkpoint.load_own(found.path, other)["feedback"] for other in alike))
