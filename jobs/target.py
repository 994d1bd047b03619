"""`sage target`: fix the targets of a sweep, and choose each method's tuning point, from its pilot runs."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from sage import storage
from sage.config import Config, is_overlapped
from sage.jobs.pilot import Pilot, Point, method, pilot_runs, reference
from sage.jobs.sweep import Sweep, read
from sage.jobs.target_file import Choice, FixedTarget, write
from sage.output.units import number, spaced
from sage.storage import RESULT

Final = tuple[str, str, float]
"""The headline metric of a run, `max` or `min`, and its final value, which may be NaN."""


def main(path: Path, *, runs: Path | None = None, late: bool = False) -> int:
    """Fix the targets and the tuning points, and write them into the sweep's file.

    Args:
        path: a sweep with a table [pilot], whose pilot runs are finished.
        runs: the runs folder; None: the sweep's `runs`.
        late: fix them even if runs of the comparison are finished; the report then says so.

    Raises:
        ValueError: a pilot run is not finished, or the target would not be fixed beforehand.
    """
    sweep = read(path, runs, untuned=True)
    pilot = sweep.pilot
    if pilot is None:
        raise ValueError(
            f"{path} has no table [pilot]; add one with seed, a list of seeds for the pilot runs"
        )
    finals = _finals(path, sweep, pilot)
    chosen = {name: _best(points) for name, points in finals.items()}
    done = _num_finished(path, runs)
    targets = [
        _target(pilot, config, finals[method(config)][chosen[method(config)]], before=not done)
        for config in reference(sweep.configs).values()
    ]
    if not targets:
        raise ValueError(f"{path} has no run of the reference, bf16 or exact; add one to reducer")
    targets = [_as_fixed_before(target, sweep.targets) for target in targets]
    if not late and not all(target.before for target in targets):
        raise ValueError(
            f"{done} runs of the comparison are finished, so a target fixed now is not fixed beforehand; "
            "give another runs folder, or --late, which the report mentions"
        )
    choices = [
        Choice(method=name, point=dict(chosen[name]), scores=_scores(points))
        for name, points in finals.items()
        if pilot.is_tuned
    ]
    write(path, targets, choices)
    for target in targets:
        sign = "≥" if _better(finals, target.reference) == "max" else "≤"
        print(
            f"{target.workload}, {target.world_size} ranks: {spaced(target.metric)} {sign} "
            f"{number(target.value)} ({target.origin})"
        )
    for choice in choices:
        print(f"{choice.method}: {_named(choice.point)} (of {choice.scores})")
    print(f"written to {path}")
    return 0


Points = dict[tuple[tuple[str, Any], ...], list[Final]]
"""The final metrics of a method's pilot runs, by tuning point."""


def _finals(path: Path, sweep: Sweep, pilot: Pilot) -> dict[str, Points]:
    """Read the results of all pilot runs, by method."""
    finals: dict[str, Points] = defaultdict(dict)
    missing = []
    for base, point, config in pilot_runs(pilot, sweep.configs, from_source=False):
        try:
            result = storage.read_json(config.folder / "result.json", RESULT)
        except FileNotFoundError:
            missing.append(config)
            continue
        value = result["final"][result["metric"]]
        final = result["metric"], result.get("better", "max"), math.nan if value is None else value
        finals[method(base)].setdefault(_key(point), []).append(final)
    if missing:
        raise ValueError(
            f"{len(missing)} pilot runs are not finished, as {missing[0].folder}; run `sage submit {path} "
            "--pilot` first"
        )
    return dict(finals)


def _key(point: Point) -> tuple[tuple[str, Any], ...]:
    return tuple(point.items())


def _score(finals: list[Final]) -> float:
    """The median final metric, of which larger is better; a run that is not finite counts as the worst."""
    _, better, _ = finals[0]
    sign = 1 if better == "max" else -1
    return median(sign * value if math.isfinite(value) else -math.inf for *_, value in finals)


def _best(points: Points) -> tuple[tuple[str, Any], ...]:
    """The point with the best median; of equals the first of the grid."""
    return max(points, key=lambda point: _score(points[point]))


def _better(finals: Mapping[str, Points], name: str) -> str:
    return next(iter(finals[name].values()))[0][1]


def _target(pilot: Pilot, config: Config, finals: list[Final], *, before: bool) -> FixedTarget:
    metric, better, _ = finals[0]
    values = [value for *_, value in finals]
    if not all(map(math.isfinite, values)):
        raise ValueError(
            f"a pilot run of the reference {method(config)} ended with a {metric} that is not finite"
        )
    middle = median(values)
    # The margin is towards the worse: below the median of an accuracy, above that of a perplexity.
    margin = (1 - pilot.fraction) * abs(middle)
    if pilot.rule == "worst":
        value, rule = (min if better == "max" else max)(values), "the worst final"
    else:
        value = middle - margin if better == "max" else middle + margin
        shift = "below" if better == "max" else "above"
        rule = (
            f"{100 * (1 - pilot.fraction):.3g} % {shift} the median final" if margin else "the median final"
        )
    seeds = ", ".join(map(str, pilot.seed))
    overlap = "overlapped " if is_overlapped(config.to_dict()) else "un-overlapped "
    return FixedTarget(
        workload=config.workload,
        world_size=config.world_size,
        metric=metric,
        value=value,
        reference=method(config),
        origin=f"{rule} of {overlap}{config.reducer} over pilot seeds {seeds}",
        before=before,
    )


def _as_fixed_before(target: FixedTarget, known: Sequence[FixedTarget]) -> FixedTarget:
    """Return the target as it was fixed earlier if it is the same: it was fixed beforehand then."""
    return next(
        (candidate for candidate in known if replace(candidate, before=target.before) == target), target
    )


def _scores(points: Points) -> str:
    """The median final metric of each point, in words."""
    metric = spaced(next(iter(points.values()))[0][0])
    medians = (
        f"{_named(dict(point))}: {number(median(value for *_, value in finals))}"
        for point, finals in points.items()
    )
    return f"median {metric} {'; '.join(medians)}"


def _named(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in point.items()) or "untuned"


def _num_finished(path: Path, runs: Path | None) -> int:
    """The number of finished runs of the comparison; 0 if its tuning points are not chosen yet."""
    try:
        sweep = read(path, runs)
    except ValueError:
        return 0
    return sum(storage.is_there(config.folder / "result.json") for config in sweep.configs)
