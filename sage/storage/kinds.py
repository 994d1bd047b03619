"""The kinds of files that SAGE writes: the schema of each, and the remedy for a damaged file."""

from typing import Any, Literal

from sage.storage.schema import AnyFloat, Kind

# Files of a run folder.

NO_RUNS = ("checkpoints", "tensorboard", "trackers")
"""Subfolders of a run folder that contain no runs."""

RERUN = "run it again with --fresh, or remove its folder"
NUMBER = float | None
"""A number; null if it was not finite or not measured."""

CONFIG = Kind(
    name="a run's configuration",
    keys={
        "workload": str,
        "reducer": str,
        "reducer_options?": dict[str, Any],
        "task?": str,
        "model?": str,
        "data?": str,
        "seed?": int,
        "world_size?": int,
        "steps?": int | None,
        "epochs?": float,
    },
    remedy=RERUN,
)

MANIFEST = Kind(
    name="a run's manifest",
    keys={
        "versions": dict[str, str | None],
        "machine": {
            "hostname": str,
            "os": str,
            "cpu": str,
            "cores": int | None,
            "memory_bytes": int,
            "gpus": list[str],
        },
        "git": {"commit": str | None, "dirty": bool | None},
        "environment?": dict[str, str],
        "links?": dict[str, Any] | None,
        "hosts?": list[str],
        "checksums?": dict[str, str],
        "provenance?": dict[str, str],
    },
    remedy=RERUN,
)


def _lacks_its_metric(result: dict[str, Any]) -> str:
    return "" if result["metric"] in result["final"] else f"'final' lacks the metric {result['metric']!r}"


RESULT = Kind(
    name="a run's result",
    keys={
        "metric": str,
        "better?": Literal["max", "min"],
        "steps": int,
        "final": dict[str, NUMBER],
        "best?": NUMBER,
        "seconds?": NUMBER,
        "steps_per_second?": NUMBER,
        "step_seconds?": dict[str, NUMBER],
        "loader_share?": NUMBER,
        "payload_per_step?": dict[str, NUMBER],
        "wire_sent_per_step?": NUMBER,
        "wire_received_per_step?": NUMBER,
        **dict.fromkeys(("wire_sent_in_node_per_step?", "wire_received_in_node_per_step?"), NUMBER),
        "density_asked?": NUMBER,
        "density_had?": NUMBER,
        **dict.fromkeys(("vnmse?", "state_bytes?", "peak_bytes?"), NUMBER),
    },
    check=_lacks_its_metric,
    remedy="remove it and rerun the same command to resume from the last checkpoint, or use --fresh",
)

FAILURE = Kind(
    name="the reason for a run's failure",
    keys={"error": str, "rank?": int | None, "status?": int, "time?": str},
    remedy="remove it, or rerun the run",
)

METRICS = Kind(
    name="a record",
    keys={"step": int},
    variants={
        "step": {
            "epoch": int,
            **dict.fromkeys(("loss?", "lr?", "density_asked?", "density_had?", "density_union?"), NUMBER),
            **dict.fromkeys(("threshold?", "residual_norm?", "gradient_norm?", "seconds?"), NUMBER),
            **dict.fromkeys(("encode_seconds?", "decode_seconds?", "exposed_seconds?"), NUMBER),
            **dict.fromkeys(("loader_seconds?", "vnmse?"), NUMBER),
            **dict.fromkeys(("wire_sent?", "wire_received?"), NUMBER),
            **dict.fromkeys(("wire_sent_in_node?", "wire_received_in_node?"), NUMBER),
            **dict.fromkeys(("bytes?", "phases?"), dict[str, NUMBER] | None),
            "communicated?": bool,
        },
        "epoch": {
            "epoch": float,
            "metrics": dict[str, NUMBER],
            "train_loss": NUMBER,
            "seconds?": NUMBER,
            "average_metrics?": dict[str, NUMBER] | None,
        },
        "event": {"event": str, "time?": str},
    },
    remedy=(
        "a crash damages only the last line, so another program changed this file: remove the line to read "
        "the rest, or use --fresh"
    ),
)

# Files of a checkpoint.


def _lists_its_files(index: dict[str, Any]) -> str:
    world_size, files = index["world_size"], index["files"]
    if world_size < 1 or len(files) != world_size + 1:
        return f"it lists {len(files)} files; {world_size} ranks have {world_size + 1}"
    entry = Kind(name="an entry", keys={"bytes": int, "sha256": str})
    faults = (f"{name!r}: {fault}" for name, content in files.items() if (fault := entry.fault(content)))
    return next(faults, "")


CHECKPOINT = Kind(
    name="a checkpoint's index",
    keys={"step": int, "world_size": int, "files": dict[str, dict[str, Any]]},
    check=_lists_its_files,
    remedy="remove this checkpoint's folder",
)

SHARED = Kind(
    name="the shared state of a checkpoint",
    keys={
        "step": int,
        "seconds": float,
        **dict.fromkeys(("model", "optimizer", "average", "loss_scale"), dict),
        "outer?": dict,
    },
)

OWN = Kind(
    name="the state of one rank in a checkpoint",
    keys={
        **dict.fromkeys(("feedback", "before", "shards?", "task", "buffers", "optimizer?"), dict),
        "local?": {"taken": int, "largest_lr": float, "weights": dict, "clock?": int},
        "inner?": {"optimizer": dict, "loss_scale": dict},
        "random": {"torch": Any, "cuda": Any, "python": tuple, "numpy": dict, "numpy_gauss": dict},
        "tally": {
            "step_seconds": Any,
            "evaluations": list[dict[str, AnyFloat]],
            "totals": dict[str, AnyFloat],
            "loss": list[AnyFloat],
        },
    },
)

TRACE = Kind(
    name="a trace",
    keys={
        **dict.fromkeys(("codes_SWN", "exponents_SW", "lr_S"), Any),
        "first": int,
        "numel": int,
        "config": {"workload": str, "schedule?": str},
        "sizes?": list[Any],
    },
)

VOCABULARY = Kind(
    name="a vocabulary",
    keys={"tokens": list[str], "sums": dict[str, str]},
    remedy="remove its folder; it is then created again",
)

TOKENS = Kind(
    name="a summary of a file of tokens",
    keys={"sha256": str, "largest": int},
    remedy="remove it; it is then created again",
)
