"""Makes up calibrations for the tests of predictions: times follow from a few constants."""

from collections.abc import Mapping
from typing import Any

from sage.predict.calibration import (
    Calibration,
    Message,
    MethodTimes,
    ModelTimes,
    Parameter,
    Samples,
)
from sage.predict.calibration_schema import Collective

LATENCY, BANDWIDTH = 50e-6, 12.5e6
"""Of every made-up link, in seconds and bytes per second."""

SIZES = tuple(2**power for power in range(10, 26, 3))


def all_reduce(ranks: int, size: int) -> float:
    """Seconds of a ring all-reduce."""
    return 2 * (ranks - 1) * (LATENCY + size / ranks / BANDWIDTH)


def all_gather(ranks: int, size: int) -> float:
    """Seconds of a ring all-gather of `size` bytes from each rank."""
    return (ranks - 1) * (LATENCY + size / BANDWIDTH)


def all_to_all(ranks: int, size: int) -> float:
    """Seconds of an all-to-all of `size` bytes from each rank, or of a reduce-scatter."""
    return (ranks - 1) * (LATENCY + size / ranks / BANDWIDTH)


TIMES: Mapping[Collective, Any] = {
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "all_to_all": all_to_all,
    "reduce_scatter": all_to_all,
}


def links(*, noise: float = 0.0) -> tuple[Samples, ...]:
    """Measurements of each collective at 2 and 4 ranks, `noise` being their relative spread."""
    return tuple(
        Samples(name, "inter", ranks, size, tuple(of(ranks, size) * (1 + noise * i) for i in (-1, 0, 1)))
        for name, of in TIMES.items()
        for ranks in (2, 4)
        for size in SIZES
    )


def model(*, layers: int = 20, numel: int = 250_000, backward: float = 0.2) -> ModelTimes:
    """A model of equal layers, whose gradients are ready at equal intervals."""
    return ModelTimes(
        workload="made-up",
        batch_size=32,
        parameters=tuple(
            Parameter(f"layer{layers - i}", numel, backward * (i + 1) / layers) for i in range(layers)
        ),
        forward_seconds=(0.1, 0.1, 0.1),
        backward_seconds=(backward, backward, backward),
        optimizer_seconds=(0.01, 0.01, 0.01),
        gamma=(1.0, 1.0, 1.0),
    )


def dense(n: int, *, bytes_each: int, reducer: str) -> MethodTimes:
    """A method that sums the whole gradient by one all-reduce."""
    message = Message("all_reduce", bytes_each * n)
    return MethodTimes(
        reducer=reducer,
        options={},
        encode_seconds=(0.001,) * 3,
        decode_seconds={2: (0.001,) * 3, 4: (0.001,) * 3},
        density=None,
        messages={2: (message,), 4: (message,)},
    )


def topk(n: int, *, density: float = 0.01, encode: float = 0.05) -> MethodTimes:
    """A method that gathers 8 bytes for each element that it selects."""
    message = Message("all_gather", int(8 * density * n))
    return MethodTimes(
        reducer="topk",
        options={"density": density},
        encode_seconds=(encode,) * 3,
        decode_seconds={2: (0.002,) * 3, 4: (0.004,) * 3},
        density=density,
        messages={2: (message,), 4: (message,)},
    )


def calibration(*, noise: float = 0.0, **of_model: Any) -> Calibration:
    """A calibration at a world size of 4, one rank on each node."""
    own = model(**of_model)
    return Calibration(
        machine={"hostname": "made-up", "cores": 1},
        time="2026-01-01T00:00:00+00:00",
        world_size=4,
        ranks_per_node=1,
        links=links(noise=noise),
        model=own,
        methods=(
            dense(own.numel, bytes_each=4, reducer="exact"),
            dense(own.numel, bytes_each=2, reducer="bf16"),
            topk(own.numel),
        ),
    )
