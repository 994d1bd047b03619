"""Starts the ranks of a run on this machine, and again without those that are lost (`--quorum`)."""

import sys
from collections.abc import Callable
from typing import Literal

from sage.comm.rendezvous import Place
from sage.comm.spawn import spawn_ranks
from sage.config import Config


def spawn_with_quorum(rank: Callable[[Place], int], config: Config, method: Literal["fork", "spawn"]) -> int:
    """Run the ranks, and return their combined exit status.

    A rank is lost if its process ends without reporting why, for example because it was killed. The others
    then end too. If at least `quorum` remain, so many ranks are started, and resume from the newest
    checkpoint; their learning rates and number of steps are those of the configuration's `world_size`.
    """
    remaining = config.world_size
    while True:
        ended = spawn_ranks(rank, remaining, method=method)
        before, remaining = remaining, remaining - len(ended.lost)
        if config.quorum is None or not ended.lost or remaining < config.quorum:
            return ended.status
        print(
            f"sage: {len(ended.lost)} of {before} ranks lost; going on with {remaining} from the newest "
            f"checkpoint, as the quorum is {config.quorum}",
            file=sys.stderr,
        )
