"""Pairs the runs of two result sets: by their configuration without the seed, then by the seed."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sage.output.units import printable
from sage.report.groups import grouped
from sage.report.runs import Run

Key = frozenset[tuple[str, Any]]
"""All settings that a result depends on, except the seed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairing:
    """The runs of one configuration that both sets have, paired by seed."""

    label: str
    """The workload and the number of ranks, the reducer, and the settings in which the set's runs differ."""
    pairs: Mapping[int, tuple[Run, Run]]
    """By seed: the run of A and the run of B; at least one of each pair is finished."""

    @property
    def finished(self) -> dict[int, tuple[Run, Run]]:
        """The pairs of which both runs are finished."""
        return {seed: (a, b) for seed, (a, b) in self.pairs.items() if a.is_finished and b.is_finished}


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """Two result sets: the configurations of which both have runs, and the runs without a counterpart."""

    pairings: Sequence[Pairing]
    only_a: Sequence[Run]
    only_b: Sequence[Run]


def paired(a: Iterable[Run], b: Iterable[Run]) -> Paired:
    """Pair the runs of two sets. Two runs that are both unfinished count as without a counterpart.

    Raises:
        ValueError: if a set has two runs of one configuration and seed.
    """
    ours, theirs = _by_key("A", a), _by_key("B", b)
    common = {
        where for where in ours.keys() & theirs.keys() if ours[where].is_finished or theirs[where].is_finished
    }
    members: dict[Key, dict[int, tuple[Run, Run]]] = defaultdict(dict)
    for key, seed in sorted(common, key=lambda where: where[1]):
        members[key][seed] = ours[key, seed], theirs[key, seed]
    labels = _labels([ours[where] for where in common])
    pairings = [
        Pairing(label=labels[id(next(iter(pairs.values()))[0])], pairs=pairs) for pairs in members.values()
    ]
    return Paired(
        pairings=sorted(pairings, key=lambda pairing: pairing.label),
        only_a=[run for where, run in ours.items() if where not in common],
        only_b=[run for where, run in theirs.items() if where not in common],
    )


def _by_key(name: str, runs: Iterable[Run]) -> dict[tuple[Key, int], Run]:
    by_key: dict[tuple[Key, int], Run] = {}
    for run in runs:
        where = _key(run), run.config["seed"]
        if (other := by_key.setdefault(where, run)) is not run:
            raise ValueError(
                f"{name} has two runs of one configuration and seed, {printable(other.folder)} and "
                f"{printable(run.folder)}; give a folder that contains each run once"
            )
    return by_key


def _key(run: Run) -> Key:
    options = {f"reducer.{name}": value for name, value in run.settings.items() if name not in run.common}
    return frozenset((name, value) for name, value in {**run.common, **options}.items() if name != "seed")


def _labels(runs: Sequence[Run]) -> dict[int, str]:
    """The label of each run, by its id."""
    return {id(row.run): f"{group.title}: {row.series}" for group in grouped(runs) for row in group.rows}
