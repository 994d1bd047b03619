"""What the calibration predicts here: which set-ups to verify, and at which bandwidths they would pay."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from sage.bench.advise.setups import Setup, candidates, with_half_sums
from sage.comm.wire import Wire
from sage.config import Config
from sage.predict import grid
from sage.predict.buckets import cut
from sage.predict.calibration import Calibration
from sage.predict.closed_forms import Intervals
from sage.predict.limits import limits
from sage.predict.step_time import DENSE, Choice, Predictor
from sage.predict.step_time import Setup as Cluster

BUCKET_SHARES = (4, 16)
"""Shares of the model, as 1/4, whose sizes are tried for buckets beside the size in the configuration."""

MEBIBYTE = 2**20


def choose(
    calibration: Calibration,
    configs: Sequence[Config],
    wire: Wire,
    name: Callable[[Config], str],
    device: torch.device,
) -> list[Setup]:
    """Return the set-ups to verify, on all ranks.

    Args:
        calibration: The measurements; complete on rank 0, which decides.
        configs: The configuration of each reducer.
        wire: The communicator of all ranks.
        name: Names a configuration for the user.
        device: That of the model.
    """
    rows: list[dict[str, Any]] = []
    if wire.rank == 0:
        choices = _choices(calibration, configs[0])
        rows = [asdict(row) for row in grid.predict(Predictor(calibration), [_here(calibration)], choices)]
    chosen = json.loads(wire.texts(json.dumps(rows))[0])
    all_rows = [grid.Row(**{**row, "notes": tuple(row["notes"])}) for row in chosen]
    setups = candidates(all_rows, configs, name)
    is_other = device.type == "cpu" and wire.world_size > 2
    return with_half_sums(setups, name) if is_other else setups


def break_even(calibration: Calibration, setups: Sequence[Setup]) -> list[tuple[str, Intervals]]:
    """Return the predicted bandwidths at which each compressing set-up is faster than overlapped bf16.

    They are in bits per second, with the name of the set-up.
    """
    intervals: list[tuple[str, Intervals]] = []
    for setup in setups:
        if not setup.is_dense:
            options = setup.config.to_dict()["reducer_options"]
            methods = [
                method
                for method in calibration.methods
                if method.reducer in DENSE
                or (method.reducer == setup.config.reducer and dict(method.options) == options)
            ]
            own = replace(calibration, methods=tuple(methods))
            (limit,) = limits(Predictor(own), [_here(own)], _bucket_mb(setup.config))
            mount = setup.config.mount
            assert mount != "fsdp"  # `setups` chooses it
            intervals.append((setup.name, limit.by_recurrence[mount]))
    return intervals


def bucket_sizes(numel: int) -> list[float]:
    """Return the other sizes of buckets to try, in MiB, of a model with so many elements of float32.

    DDP's default of 25 MiB leaves a smaller model with one or two buckets, and so with little overlap.

    >>> bucket_sizes(11_173_962)  # ResNet-18
    [11.0, 2.7]
    """
    return [float(f"{4 * numel / MEBIBYTE / share:.2g}") for share in BUCKET_SHARES]


def _choices(calibration: Calibration, config: Config) -> list[Choice]:
    """Return every method under both mounts, and under `ddp` with the other sizes of buckets that differ."""
    parameters, numel = calibration.model.parameters, calibration.model.numel
    own = _bucket_mb(config)
    choices, seen = grid.choices(calibration, own), [cut(parameters, own)]
    for size in bucket_sizes(numel):
        if (buckets := cut(parameters, size)) not in seen:
            seen.append(buckets)
            choices += [other for other in grid.choices(calibration, size) if other.mount == "ddp"]
    return choices


def _here(calibration: Calibration) -> Cluster:
    return Cluster(ranks=calibration.world_size, ranks_per_node=calibration.ranks_per_node)


def _bucket_mb(config: Config) -> float | None:
    """The size of buckets for a prediction; None: DDP's default, whose first bucket is smaller."""
    return None if config.bucket_mb == Config.bucket_mb else config.bucket_mb
