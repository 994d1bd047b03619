"""Predicts every method under every mount on every cluster, against overlapped bf16."""
# D = draws, X = bandwidths

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sage.predict.calibration import Calibration, Message, MethodTimes
from sage.predict.step_time import DENSE, Choice, Mount, Predictor, Setup, Step, find, interval, is_far

Verdict = Literal["pays", "does not pay", "undecided", "dense"]

REFERENCE = "bf16"
MOUNTS: tuple[Mount, ...] = ("whole", "ddp")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A predicted step, with its 95 % band."""

    cluster: str
    ranks: int
    ranks_per_node: int
    bits_per_second: float | None
    """Of the links between nodes; None: as measured."""
    reducer: str
    options: Mapping[str, Any]
    mount: Mount
    bucket_mb: float | None
    seconds: float
    seconds_low: float
    seconds_high: float
    communication_seconds: float
    exposed_seconds: float
    coding_seconds: float
    reference_seconds: float
    """Of bf16 under the mount `ddp`."""
    speedup: float
    """Over the reference."""
    speedup_low: float
    speedup_high: float
    verdict: Verdict
    """`pays` if the interval of the speed-up is above 1, `does not pay` if it is below; dense methods have
    none."""
    is_model: bool
    """Whether the world size is beyond four times the largest that was measured."""
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The reducer with its options, and the mount."""
        return f"{label(self.reducer, self.options)} × {self.mount}"

    def to_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return asdict(self)


def label(reducer: str, options: Mapping[str, Any]) -> str:
    """Return a reducer with its options, as `topk(density=0.01)`."""
    inner = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"{reducer}({inner})" if inner else reducer


def dense_method(calibration: Calibration, reducer: str) -> MethodTimes:
    """Return a dense method as measured; made of the element count alone if it was not measured."""
    found = find(calibration.methods, reducer)
    if found is not None:
        return found
    message = Message("all_reduce", DENSE[reducer] * calibration.model.numel)
    return MethodTimes(reducer, {}, (0.0,), {1: (0.0,)}, None, {calibration.world_size: (message,)})


def reference(calibration: Calibration) -> MethodTimes:
    """Return bf16, which under the mount `ddp` is the reference of all comparisons."""
    return dense_method(calibration, REFERENCE)


def choices(calibration: Calibration, bucket_mb: float | None) -> list[Choice]:
    """Return every measured method under both mounts, and the reference."""
    methods = list(calibration.methods)
    if find(methods, REFERENCE) is None:
        methods.append(reference(calibration))
    return [
        Choice(method, mount, bucket_mb if mount == "ddp" else None) for method in methods for mount in MOUNTS
    ]


def is_reference(choice: Choice) -> bool:
    """Whether this is the reference of all comparisons."""
    return choice.method.reducer == REFERENCE and choice.mount == "ddp"


def predict(predictor: Predictor, setups: Sequence[Setup], every: Sequence[Choice]) -> list[Row]:
    """Predict each choice in each setup, at each of its bandwidths.

    Raises:
        ValueError: if the bandwidth or the latency of a setup is not known.
    """
    rows: list[Row] = []
    for setup in setups:
        network = predictor.links(setup.link)
        steps = [predictor.step(choice, setup, network) for choice in every]
        base = next(step for choice, step in zip(every, steps, strict=True) if is_reference(choice))
        bandwidths = setup.link.bytes_per_second
        for x, bandwidth in enumerate(bandwidths or (None,)):
            for choice, step in zip(every, steps, strict=True):
                bits = None if bandwidth is None else 8 * bandwidth
                rows.append(_row(predictor, setup, bits, choice, step, base, x))
    return rows


def _row(
    predictor: Predictor,
    setup: Setup,
    bits: float | None,
    choice: Choice,
    step: Step,
    base: Step,
    x: int,
) -> Row:
    seconds_D, base_D = (at(each.seconds_DX, x) for each in (step, base))
    low, high = interval(seconds_D)
    speedup_D = base_D / seconds_D
    speedup_low, speedup_high = interval(speedup_D)
    if choice.method.reducer in DENSE:
        verdict: Verdict = "dense"
    else:
        verdict = "pays" if speedup_low > 1 else "does not pay" if speedup_high <= 1 else "undecided"
    return Row(
        cluster=setup.name,
        ranks=setup.ranks,
        ranks_per_node=min(setup.ranks, setup.ranks_per_node),
        bits_per_second=bits,
        reducer=choice.method.reducer,
        options=choice.method.options,
        mount=choice.mount,
        bucket_mb=choice.bucket_mb,
        seconds=float(seconds_D[0]),
        seconds_low=low,
        seconds_high=high,
        communication_seconds=float(at(step.communication_DX, x)[0]),
        exposed_seconds=float(at(step.exposed_DX, x)[0]),
        coding_seconds=float(step.coding_D1[0, 0]),
        reference_seconds=float(base_D[0]),
        speedup=float(speedup_D[0]),
        speedup_low=speedup_low,
        speedup_high=speedup_high,
        verdict=verdict,
        is_model=is_far(predictor, setup.ranks),
        notes=(*setup.notes, *step.notes),
    )


def at(values_DX: Any, x: int) -> Any:
    """The draws at one bandwidth, of values that may have one column for all."""
    return values_DX[:, min(x, values_DX.shape[1] - 1)]


def clusters(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Yield the rows of each cluster, world size and bandwidth, fastest first."""
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = row.cluster, row.ranks, row.ranks_per_node, row.bits_per_second
        grouped.setdefault(key, []).append(row)
    yield from (sorted(found, key=lambda row: row.seconds) for found in grouped.values())
