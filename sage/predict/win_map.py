"""The map of the fastest methods over bandwidth and number of ranks."""
# D = draws, X = bandwidths

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from sage.predict.step_time import DENSE, Choice, Predictor, Setup


@dataclass(frozen=True)
class Map:
    """Which method is the fastest, at each number of ranks and bandwidth."""

    ranks: tuple[int, ...]
    bits_per_second: tuple[float, ...]
    labels: tuple[str, ...]
    """The methods that are the fastest somewhere."""
    winners: tuple[tuple[int, ...], ...]
    """For each number of ranks and bandwidth the index in `labels`; -1 where nothing pays, that is where no
    method is faster than every dense one in 97.5 % of the draws."""


def win_map(predictor: Predictor, setups: Sequence[Setup], choices: Sequence[Choice]) -> Map:
    """Return the map of the fastest methods over setups that differ in their ranks alone."""
    dense = [i for i, choice in enumerate(choices) if choice.method.reducer in DENSE]
    others = [i for i in range(len(choices)) if i not in dense]
    winners = []
    for setup in setups:
        network = predictor.links(setup.link)
        steps = [predictor.step(c, setup, network).seconds_DX * c.steps_ratio for c in choices]
        best_DX = numpy.minimum.reduce([steps[i] for i in dense])
        fastest = numpy.full(best_DX.shape[1], numpy.inf)
        winner = numpy.full(best_DX.shape[1], -1)
        for i in others:
            gain_X = numpy.quantile((best_DX / steps[i])[1:], 0.025, axis=0)
            wins_X = (gain_X > 1) & (steps[i][0] < fastest) & (steps[i][0] < best_DX[0])
            fastest[wins_X], winner[wins_X] = numpy.broadcast_to(steps[i][0], wins_X.shape)[wins_X], i
        winners.append(winner)
    used = sorted({int(i) for winner in winners for i in winner} - {-1})
    place = {-1: -1, **{i: place for place, i in enumerate(used)}}
    return Map(
        ranks=tuple(setup.ranks for setup in setups),
        bits_per_second=tuple(8 * bandwidth for bandwidth in setups[0].link.bytes_per_second or ()),
        labels=tuple(choices[i].label for i in used),
        winners=tuple(tuple(place[int(i)] for i in winner) for winner in winners),
    )
