"""The baselines of a group's settings: the dense reference, and exact without overlap.

The reference is bf16 or exact under DistributedDataParallel (`mount = "ddp"`), whose communication overlaps
with backward. Only if no such run did the same work, it is one under another mount.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sage.comm.ledger import ring_all_reduce
from sage.config import is_overlapped, is_reference, reduces_gradients
from sage.config.local_presets import KEYS as LOCAL
from sage.config.shards import FORMATS, sends_shards_whole
from sage.report.reference import mount_of, rank
from sage.report.runs import EXACT, Run
from sage.report.settings import Row, Setting

SAME_WORK = (
    "task",
    "model",
    "data",
    "batch_size",
    "accumulate",
    "threads",
    "device",
    "amp",
    "workers_in_process",
)
"""Settings that, with the options of model and data, determine the time of a step without a reducer."""

OWN = (
    *("reducer", "seed", "memory", "memory_beta", "memory_gamma", "memory_lr_ratio", "memory_a"),
    *("memory_eta", "memory_loco_beta", "memory_reset_every", "min_compress"),
    *LOCAL,
)
"""Settings that may differ between a run and its baseline."""

ANY_MOUNT = (*OWN, "mount", "bucket_mb", "shards", *FORMATS, "hierarchy", "ranks_per_node")
"""Settings that may differ between a run and its reference, which overlaps even if the run does not."""

Index = dict[Any, Setting]
"""Settings by the keys of `_likenesses`."""


def folded(rows: Sequence[Row]) -> list[Setting]:
    """Return the settings that have figures, each with its reference."""
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.has_figures:
            members[row.series].append(row)
    settings = [Setting(label=label, rows=those) for label, those in members.items()]
    overlapped = _index(settings, lambda member: _is_dense(member) and is_overlapped(_config(member)))
    others = _index(settings, lambda member: _is_dense(member) and not is_overlapped(_config(member)))
    plain = _index(settings, lambda member: _is_exact(member) and mount_of(_config(member)) == "whole")
    for setting in settings:
        setting.reference = _closest(setting, overlapped) or _closest(setting, others)
        setting.unoverlapped = _closest(setting, plain)
    return settings


def compare(settings: Sequence[Setting], rows: Sequence[Row]) -> None:
    """Set the ratios to the reference and to exact in the rows.

    The compression is relative to exact, whichever way it is mounted: the mount does not change its bytes,
    except for FSDP2's own collectives of shards. On two levels other bytes are sent.
    """
    exacts = _index(settings, _is_flat_exact)
    # An unfinished run does not record its number of parameters; a finished run of the same model does.
    sizes = {_model(row.run): count for row in rows if (count := row.run.figures.parameters)}
    for setting in settings:
        reference, plain = setting.reference, setting.unoverlapped
        speed = None if reference is None else reference.mean("steps_per_second")
        slower = None if plain is None else plain.mean("steps_per_second")
        exact = setting if _is_flat_exact(setting) else _closest(setting, exacts)
        measured = None if exact is None else exact.mean("wire_bytes_per_step")
        for row in setting.rows:
            values = row.values
            dense = measured or _dense_bytes(sizes.get(_model(row.run)), values["world_size"])
            values["reference"] = None if reference is None else reference.label
            values["speed_up"] = _over(values["steps_per_second"], speed)
            values["speed_up_unoverlapped"] = _over(values["steps_per_second"], slower)
            values["compression"] = _over(dense, values["wire_bytes_per_step"])


def _config(setting: Setting) -> dict[str, Any]:
    return setting.rows[0].run.config


def _is_dense(setting: Setting) -> bool:
    return is_reference(_config(setting)) and sends_shards_whole(_config(setting))


def _is_exact(setting: Setting) -> bool:
    config = _config(setting)
    return config["reducer"] == EXACT and sends_shards_whole(config) and reduces_gradients(config)


def _is_flat_exact(setting: Setting) -> bool:
    config = _config(setting)
    is_flat = config.get("shards", 1) == 1 and config.get("hierarchy", "flat") == "flat"
    return _is_exact(setting) and is_flat


def _index(settings: Iterable[Setting], is_member: Callable[[Setting], bool]) -> Index:
    """Index the members by their keys; a finished one takes precedence, then the fastest."""
    known: Index = {}
    members = filter(is_member, settings)
    for member in sorted(members, key=lambda member: (not member.counted[0].run.is_finished, *rank(member))):
        for key in _likenesses(member.rows[0].run):
            known.setdefault(key, member)
    return known


def _closest(setting: Setting, known: Index) -> Setting | None:
    return next((known[key] for key in _likenesses(setting.rows[0].run) if key in known), None)


def _likenesses(run: Run) -> list[Any]:
    """Return keys that a run may share with its reference, closest match first; the last is the same work."""
    others = frozenset(item for item in run.common.items() if item[0] not in ANY_MOUNT)
    work = frozenset(
        (name, value)
        for name, value in run.common.items()
        if name in SAME_WORK or name.startswith(("model.", "data."))
    )
    place = str(run.folder.parent)
    return [(others, place), (others, None), (work, place), (work, None)]


def _dense_bytes(parameters: int | None, world_size: int) -> float | None:
    """Bytes that a ring all-reduce of all gradients in float32 sends and receives on a rank's link."""
    return None if parameters is None or world_size == 1 else sum(ring_all_reduce(4 * parameters, world_size))


def _model(run: Run) -> tuple[Any, ...]:
    common = run.common
    options = [item for item in common.items() if item[0].startswith(("model.", "data."))]
    return common.get("model"), common.get("data"), *options


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
