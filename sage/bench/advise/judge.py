"""Decides what to run, from the measured steps of the candidates and the references."""

from collections.abc import Sequence
from statistics import median

from sage.bench.advise.setups import Setup
from sage.bench.advise.trials import Trial
from sage.bench.advise.verdict import Measured, Verdict
from sage.predict.closed_forms import Intervals
from sage.report.paired_ratio import paired_ratio


def judge(
    setups: Sequence[Setup],
    trials: Sequence[Trial],
    *,
    workload: str,
    command: str,
    ranks: int,
    nodes: int,
    break_even: Sequence[tuple[str, Intervals]],
    failed: Sequence[str] = (),
) -> Verdict:
    """Compare the candidates with the faster of the dense set-ups, round by round.

    A candidate pays if the 95 % interval of its speed-up lies above 1. Of those that pay, the one with the
    largest speed-up is recommended.

    Args:
        setups: The set-ups, with one dense one or more.
        trials: Their measurements, in the same order.
        workload: Name of the workload.
        command: The command that precedes the name of a set-up; "" in a script.
        ranks: Number of ranks.
        nodes: Number of nodes.
        break_even: For the names of set-ups, the predicted bandwidths at which they are faster than
            overlapped bf16, in bits per second.
        failed: The reducers that failed and were left out, each with the reason.
    """
    pairs = list(zip(setups, trials, strict=True))
    base = min((pair for pair in pairs if pair[0].is_dense), key=lambda pair: median(pair[1].seconds))
    measured = sorted((_measured(*pair, base[1]) for pair in pairs), key=lambda setup: setup.seconds)
    reference = next(setup for setup in measured if setup.name == base[0].name)
    paying = [setup for setup in measured if not setup.is_dense and setup.speedup_low > 1]
    ends = [(high, name) for name, found in break_even for _, high in found]
    below, name = max(ends, default=(None, ""))
    recommended = max(paying, key=lambda setup: setup.speedup) if paying else reference
    return Verdict(
        word="pays" if paying else "nothing pays",
        workload=workload,
        ranks=ranks,
        nodes=nodes,
        command=f"{command} {recommended.name}".strip(),
        recommended=recommended,
        reference=reference,
        measured=tuple(measured),
        pays_below=None if paying else below,
        pays_with="" if paying else name,
        failed=tuple(failed),
    )


def _measured(setup: Setup, trial: Trial, base: Trial) -> Measured:
    ratio = paired_ratio(dict(enumerate(base.seconds)), dict(enumerate(trial.seconds)))
    low, high = ratio.interval or (ratio.centre, ratio.centre)
    return Measured(
        name=setup.name,
        is_dense=setup.is_dense,
        seconds=median(trial.seconds),
        predicted_seconds=setup.predicted_seconds,
        rounds=len(trial.seconds),
        steps=trial.steps,
        speedup=ratio.centre,
        speedup_low=low,
        speedup_high=high,
    )
