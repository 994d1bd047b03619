"""Labels of runs: the reducer, and the settings in which the runs with this reducer differ."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sage.output.units import printable
from sage.report.runs import Run


def labels(members: Sequence[Run]) -> list[tuple[str, str]]:
    """Return each run's label, and the label without the seed.

    A label is the reducer and the settings in which the runs with this reducer differ; the mount, if it
    differs between any runs.
    """
    values_by_reducer: dict[str, dict[str, set[Any]]] = {}
    counts: Counter[str] = Counter(run.config["reducer"] for run in members)
    given: Counter[tuple[str, str]] = Counter()
    for run in members:
        reducer = run.config["reducer"]
        for name, value in run.settings.items():
            values_by_reducer.setdefault(reducer, {}).setdefault(name, set()).add(value)
            given[reducer, name] += 1
    differing: dict[str, set[str]] = {}
    for reducer, names in values_by_reducer.items():
        # A setting that some runs lack counts as one more value, unless it is None in the others.
        lacking = {name: {None} if given[reducer, name] < counts[reducer] else set() for name in names}
        differing[reducer] = {name for name, values in names.items() if len(values | lacking[name]) > 1}
        # Step times of different mounts are compared: `mount=ddp` is in every label if not all runs have it.
        if any("mount" not in run.settings for run in members):
            differing[reducer] |= {"mount"} & names.keys()
    plain = []
    for run in members:
        words = [
            (name, value) for name, value in run.settings.items() if name in differing[run.config["reducer"]]
        ]
        plain.append(
            tuple(
                " ".join(
                    [
                        run.config["reducer"],
                        *(f"{name}={_text(value)}" for name, value in words if name != left),
                    ]
                )
                for left in ("", "seed")
            )
        )
    # If a run exists in several folders, the labels of all runs of its setting include the folder.
    repeated = Counter(label for label, _ in plain)
    placed = {series for label, series in plain if repeated[label] > 1}
    whole = Counter((label, str(run.folder.parent)) for run, (label, _) in zip(members, plain, strict=True))
    labels = []
    for run, (label, series) in zip(members, plain, strict=True):
        where = ""
        if series in placed:
            is_alone = whole[label, str(run.folder.parent)] == 1
            where = f" in {run.folder.parent if is_alone else run.folder}"
        labels.append((printable(label + where), printable(series + where)))
    return labels


def _text(value: Any) -> str:
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, tuple) else str(value)
