"""The dense reference of a group: what a user would run without compression.

It is `bf16` or `exact` under DistributedDataParallel (`mount = "ddp"`), whose communication overlaps with
backward; only if there are no such runs, one that reduces after backward. Among several it is the one that
reaches the target first, so that the reference is never handicapped.
"""

import math
from collections.abc import Sequence
from statistics import median

from sage.config import DENSE, REFERENCES, is_overlapped
from sage.report.groups import Group, Setting


def is_dense(setting: Setting) -> bool:
    """Whether the setting sends every element."""
    return setting.rows[0].run.config["reducer"] in DENSE


def reference_of(group: Group) -> Setting | None:
    """Return the group's reference; None if no run is dense."""
    dense = [each for each in group.settings if each.rows[0].run.config["reducer"] in REFERENCES]
    overlapped = [each for each in dense if is_overlapped(each.rows[0].run.config)]
    return min(overlapped or dense, key=_rank, default=None)


def about_reference(reference: Setting | None) -> str:
    """State which setting is the reference, and whether its communication overlaps with backward."""
    if reference is None:
        return f"There is no dense run ({' or '.join(REFERENCES)}), so there is no reference and no verdict."
    if is_overlapped(reference.rows[0].run.config):
        return f"Reference: {reference.label}, which overlaps communication with backward (mount ddp)."
    return (
        f"Reference: {reference.label}, which is un-overlapped: it communicates after backward, and is "
        'slower than DistributedDataParallel. Add runs of bf16 with mount = "ddp".'
    )


def _rank(setting: Setting) -> tuple[float, int, str]:
    return time_of(setting), REFERENCES.index(setting.rows[0].run.config["reducer"]), setting.label


def time_of(setting: Setting) -> float:
    """The median of the seconds to the target over the runs; of a step's without a target or any such run."""
    found = by_seed(setting, "seconds_to_target").values()
    if found:
        return median(found)
    mean = setting.mean("step_seconds_p50")
    return math.inf if mean is None or math.isnan(mean) else mean


def by_seed(setting: Setting, name: str) -> dict[int, float]:
    """The values of the setting's runs that have one, by seed."""
    values: Sequence[tuple[int, float | None]] = [
        (row.run.config["seed"], row.values[name]) for row in setting.rows
    ]
    return {seed: value for seed, value in values if value is not None}
