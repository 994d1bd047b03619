"""Compares settings, versions and checksums between the ranks of a run, and formats the differences."""

import json
from collections.abc import Mapping, Sequence

from sage.comm.wire import Wire
from sage.output.text import clean_text

Facts = Mapping[str, str]
"""One rank's settings, versions and checksums of files, by name."""

SHOWN = 6
"""Number of facts that a message names; of the others it gives only the count."""

NOTES = {"commit": "source files"}
"""Facts that may differ, each with the fact with which it is shown.

One commit may have several states of its files: `commit` is shown only if `source files` differs.
"""


class RanksDiffer(ValueError):
    """The ranks were started with different settings, code or data."""


def differences(facts: Mapping[int, Facts]) -> str:
    """Describe the facts that differ between ranks, in one line; "" if all are equal.

    >>> differences({0: {"lr": "0.1"}, 1: {"lr": "0.2"}, 2: {"lr": "0.1"}})
    'lr is 0.1 on ranks 0, 2 and 0.2 on rank 1'
    """
    names = list(dict.fromkeys(name for rank_facts in facts.values() for name in rank_facts))
    differ = [name for name in names if len({rank_facts.get(name) for rank_facts in facts.values()}) > 1]
    shown = [name for name in differ if name not in NOTES]
    shown += [name for name in differ if name in NOTES and NOTES[name] in shown]
    lines = []
    for name in shown[:SHOWN]:
        ranks: dict[str, list[int]] = {}
        for rank, rank_facts in sorted(facts.items()):
            ranks.setdefault(clean_text(rank_facts.get(name, "not given"), 80), []).append(rank)
        values = [f"{value or 'empty'} on {format_ranks(at)}" for value, at in ranks.items()]
        lines.append(f"{clean_text(name, 80)} is {', '.join(values[:-1])} and {values[-1]}")
    if len(shown) > SHOWN:
        lines.append(f"and {len(shown) - SHOWN} more differ")
    return "; ".join(lines)


def refusal(difference: str) -> str:
    """Return the error message for ranks that differ."""
    return (
        f"the ranks do not agree: {difference}. Nothing was trained: start all ranks with the same command, "
        "code and data"
    )


def compare(wire: Wire, facts: Facts) -> None:
    """Compare facts between the ranks of a communicator. This is a collective call.

    Raises:
        RanksDiffer: on every rank, if a fact differs; the message gives the fact, each value and its ranks.
    """
    texts = wire.texts(json.dumps(dict(facts)))
    if difference := differences({rank: json.loads(text) for rank, text in enumerate(texts)}):
        raise RanksDiffer(refusal(difference))


def format_ranks(ranks: Sequence[int]) -> str:
    """Format ranks for a message; of many ranks, the first eight.

    >>> format_ranks([3]), format_ranks([0, 2])
    ('rank 3', 'ranks 0, 2')
    """
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"ranks {', '.join(map(str, ranks[:8]))}{more}"
