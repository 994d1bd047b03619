"""What to run, from the measured steps of the candidates and the references."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from sage.bench.advise.setups import Setup
from sage.bench.advise.trials import Trial
from sage.predict.closed_forms import Intervals
from sage.report.paired import paired_ratio

Word = Literal["pays", "nothing pays"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A set-up with its measured step."""

    flags: str
    """The options of `sage run`."""
    is_dense: bool
    seconds: float
    """Median over the rounds of a step of the slowest rank."""
    predicted_seconds: float
    rounds: int
    steps: int
    """Steps of a round."""
    speedup: float
    """Geometric mean over the rounds of reference over set-up."""
    speedup_low: float
    speedup_high: float
    """The 95 % t-interval of the speed-up, on logarithms."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The recommended set-up, and the measurements behind it."""

    word: Word
    workload: str
    ranks: int
    nodes: int
    recommended: Measured
    """The fastest set-up whose interval lies above 1; else the reference."""
    reference: Measured
    """The faster of the dense set-ups that overlap with backward."""
    measured: tuple[Measured, ...]
    """All of them, the fastest first."""
    pays_below: float | None
    """Where nothing pays: the predicted bandwidth, in bits per second, below which a set-up would; None if it
    would at no bandwidth."""
    pays_with: str
    """The options of that set-up."""

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict for JSON."""
        return asdict(self)


def judge(
    setups: Sequence[Setup],
    trials: Sequence[Trial],
    *,
    workload: str,
    ranks: int,
    nodes: int,
    break_even: Sequence[tuple[str, Intervals]],
) -> Verdict:
    """Compare the candidates with the faster of the dense set-ups, round by round.

    A candidate pays if the 95 % interval of its speed-up lies above 1. Of those that pay, the one with the
    largest speed-up is recommended.

    Args:
        setups: The set-ups, with one dense one or more.
        trials: Their measurements, in the same order.
        workload: Name of the workload.
        ranks: Number of ranks.
        nodes: Number of nodes.
        break_even: For flags of set-ups, the predicted bandwidths at which they are faster than overlapped
            bf16, in bits per second.
    """
    pairs = list(zip(setups, trials, strict=True))
    base = min((pair for pair in pairs if pair[0].is_dense), key=lambda pair: median(pair[1].seconds))
    measured = sorted((_measured(*pair, base[1]) for pair in pairs), key=lambda each: each.seconds)
    reference = next(each for each in measured if each.flags == base[0].flags)
    paying = [each for each in measured if not each.is_dense and each.speedup_low > 1]
    ends = [(high, flags) for flags, found in break_even for _, high in found]
    below, flags = max(ends, default=(None, ""))
    return Verdict(
        word="pays" if paying else "nothing pays",
        workload=workload,
        ranks=ranks,
        nodes=nodes,
        recommended=max(paying, key=lambda each: each.speedup) if paying else reference,
        reference=reference,
        measured=tuple(measured),
        pays_below=None if paying else below,
        pays_with="" if paying else flags,
    )


def _measured(setup: Setup, trial: Trial, base: Trial) -> Measured:
    ratio = paired_ratio(dict(enumerate(base.seconds)), dict(enumerate(trial.seconds)))
    low, high = ratio.interval or (ratio.centre, ratio.centre)
    return Measured(
        flags=setup.flags,
        is_dense=setup.is_dense,
        seconds=median(trial.seconds),
        predicted_seconds=setup.predicted_seconds,
        rounds=len(trial.seconds),
        steps=trial.steps,
        speedup=ratio.centre,
        speedup_low=low,
        speedup_high=high,
    )
