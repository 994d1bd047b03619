"""The dense reference of a group: the run that a user would choose without compression.

It is `bf16` or `exact` under DistributedDataParallel (`mount = "ddp"`), whose communication overlaps with
backward; only if there are no such runs, one that reduces after backward. Among several it is the one that
reaches the target first, so that the reference is never handicapped. A run with local updates is never a
reference.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from sage.config import DENSE, REFERENCES, Config, is_overlapped, is_reference, reduces_gradients
from sage.report.settings import Setting


def is_dense(setting: Setting) -> bool:
    """Whether the setting sends every element of every step's gradient."""
    config = setting.rows[0].run.config
    return config["reducer"] in DENSE and reduces_gradients(config)


def reference_of(settings: Sequence[Setting]) -> Setting | None:
    """Return the reference of a group's settings; None if no run is dense."""
    dense = [setting for setting in settings if is_reference(setting.rows[0].run.config)]
    overlapped = [setting for setting in dense if is_overlapped(setting.rows[0].run.config)]
    return min(overlapped or dense, key=rank, default=None)


def references_of(settings: Sequence[Setting]) -> list[Setting]:
    """The settings that speed-ups of the group are relative to."""
    return list(dict.fromkeys(setting.reference for setting in settings if setting.reference is not None))


def about_references(references: Sequence[Setting]) -> str:
    """State which settings are the references, and whether their communication overlaps with backward."""
    if not references:
        return (
            f"There is no dense run ({' or '.join(REFERENCES)}) of the same work, so there is no reference, "
            "no speed-up and no verdict."
        )
    overlapped, others = (
        [setting for setting in references if is_overlapped(setting.rows[0].run.config) == wanted]
        for wanted in (True, False)
    )
    texts = []
    if overlapped:
        texts.append(
            f"Reference: {_named(overlapped)}, which overlaps communication with backward (mount ddp)."
        )
        if all(map(_has_one_bucket, overlapped)):
            texts.append("The whole gradient fits into one bucket, so that little overlaps.")
    sharded = [each for each in others if mount_of(each.rows[0].run.config) == "fsdp"]
    if sharded:
        texts.append(
            f"Reference: {_named(sharded)}, which FSDP2 shards (mount fsdp). Add runs of bf16 with mount = "
            '"ddp", the reference of other reports.'
        )
    if others := [each for each in others if each not in sharded]:
        texts.append(
            f"Reference: {_named(others)}, which is un-overlapped: it communicates after backward, and is "
            'slower than DistributedDataParallel. Add runs of bf16 with mount = "ddp".'
        )
    return " ".join(texts)


def mount_of(config: Mapping[str, Any]) -> str:
    """Return the mount of a configuration; older ones do not have it."""
    return str(config.get("mount", "whole"))


def rank(setting: Setting) -> tuple[float, int, str]:
    """Return the sort key of references: their time, the reducer, the label."""
    return time_of(setting), REFERENCES.index(setting.rows[0].run.config["reducer"]), setting.label


def _has_one_bucket(setting: Setting) -> bool:
    """Whether one bucket of DDP holds the gradient in float32; False if its size is not known."""
    run = setting.counted[0].run
    bucket_mb = run.config.get("bucket_mb", Config.bucket_mb)
    first_mb = 1 if bucket_mb == Config.bucket_mb else bucket_mb
    return run.figures.parameters is not None and 4 * run.figures.parameters <= first_mb * 2**20


def _named(settings: Sequence[Setting]) -> str:
    words = [f"{setting.label} (n = {len(setting.counted)})" for setting in settings[:3]]
    return ", ".join(words) + (f" and {len(settings) - 3} more" if len(settings) > 3 else "")


def time_of(setting: Setting) -> float:
    """Return the median over runs of the seconds to the target; without a target or such a run, of a step."""
    seconds = by_seed(setting, "seconds_to_target").values()
    if seconds:
        return median(seconds)
    mean = setting.mean("step_seconds_p50")
    return math.inf if mean is None or math.isnan(mean) else mean


def by_seed(setting: Setting, name: str) -> dict[int, float]:
    """Return the values of the setting's runs that have a value, by seed."""
    values: Sequence[tuple[int, float | None]] = [
        (row.run.config["seed"], row.values[name]) for row in setting.rows
    ]
    return {seed: value for seed, value in values if value is not None}
