"""The messages of a reduction: its collectives, and the bytes that each rank contributes to them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from sage.comm.ledger import Entry
from sage.predict.calibration import Message
from sage.predict.calibration_schema import Collective

COLLECTIVES: Mapping[str, Collective] = {
    "sum": "all_reduce",
    "sum_halves": "all_reduce",
    "gather": "all_gather",
    "gather_uneven": "all_gather",
    "gather_within": "all_gather",
    "gather_to": "all_gather",
    "gather_ragged": "ragged_gather",
    "gather_streams": "ragged_gather",
    "broadcast": "broadcast",
    "reduce_scatter": "reduce_scatter",
    "all_to_all": "all_to_all",
    "all_to_all_ragged": "all_to_all",
}
"""The collective of each of the wire's calls, of the same time by the number of bytes.

`gather_to` is counted as an all-gather: in both, a link has to receive the vectors of all other ranks.
`sum_halves` sends on every link what a ring all-reduce of as many bytes sends.
"""

Sequenced = tuple[Message, ...]


def of_entries(entries: Sequence[Entry]) -> Sequenced:
    """Return the messages of one reduction on one rank; calls of the schedule guard are not among them.

    >>> of_entries([Entry("sum", 8, 0.1), Entry("broadcast from 1", 0, 0.1)])
    (Message(collective='all_reduce', bytes=8), Message(collective='broadcast', bytes=0))
    """
    names = [(entry.op.partition(" ")[0], entry.payload) for entry in entries]
    return tuple(Message(COLLECTIVES[name], size) for name, size in names if name != "guard")


def of_ranks(ranks: Sequence[Sequenced]) -> Sequenced:
    """Return the messages of one reduction, with the bytes of the rank that contributes most."""
    return tuple(
        Message(messages[0].collective, max(message.bytes for message in messages))
        for messages in zip(*ranks, strict=True)
    )


def typical(steps: Sequence[Sequenced]) -> Sequenced:
    """Return the messages of a typical step: the most frequent collectives, with their median bytes.

    Of a broadcast the largest number is taken, because a rank that is not the root contributes nothing.

    >>> steps = [(Message("all_gather", size),) for size in (8, 10, 90)]
    >>> typical([*steps, (Message("broadcast", 1), Message("all_gather", 9))])
    (Message(collective='all_gather', bytes=10),)
    """
    sequences: list[tuple[Collective, ...]] = [
        tuple(message.collective for message in step) for step in steps
    ]
    ((most_frequent, _),) = Counter(sequences).most_common(1)
    alike = [step for step, sequence in zip(steps, sequences, strict=True) if sequence == most_frequent]
    sizes = [[message.bytes for message in messages] for messages in zip(*alike, strict=True)]
    return tuple(
        Message(collective, round(max(values) if collective == "broadcast" else median(values)))
        for collective, values in zip(most_frequent, sizes, strict=True)
    )
