"""A calibration: what was measured of a model, its reducers and its links, as a JSON file.

Times are in seconds, sizes in bytes. Every measurement keeps its samples, so that a prediction can resample
them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sage import storage
from sage.predict.calibration_schema import (
    CALIBRATION,
    MESSAGE,
    MODEL,
    MODEL_TIMES,
    PARAMETER,
    SAMPLES,
    Collective,
    Scope,
)
from sage.storage import Kind


@dataclass(frozen=True)
class Samples:
    """Times of one collective at one size."""

    collective: Collective
    scope: Scope
    ranks: int
    bytes: int
    """What each rank contributes; of a broadcast, what the root sends."""
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Parameter:
    """A parameter of the model, and when its gradient is ready."""

    name: str
    numel: int
    ready_seconds: float
    """From the start of backward."""


@dataclass(frozen=True)
class ModelTimes:
    """Times of the model's computation on one rank."""

    workload: str
    batch_size: int
    parameters: tuple[Parameter, ...]
    """In the order in which their gradients are ready."""
    forward_seconds: tuple[float, ...]
    backward_seconds: tuple[float, ...]
    optimizer_seconds: tuple[float, ...]
    gamma: tuple[float, ...]
    """Time of backward during communication, divided by that of backward alone."""

    @property
    def numel(self) -> int:
        """The number of elements of the gradient."""
        return sum(parameter.numel for parameter in self.parameters)


@dataclass(frozen=True)
class Message:
    """One collective of a reduction of the whole gradient."""

    collective: Collective
    bytes: int
    """What each rank contributes; of the rank that contributes most, if ranks differ."""


@dataclass(frozen=True)
class MethodTimes:
    """Times and messages of a reducer on this model's gradient."""

    reducer: str
    options: Mapping[str, Any]
    encode_seconds: tuple[float, ...]
    decode_seconds: Mapping[int, tuple[float, ...]]
    """By world size: the times of decoding the payloads of this number of ranks."""
    density: float | None
    """The density that was achieved; None for a reducer without one."""
    messages: Mapping[int, tuple[Message, ...]]
    """By world size, in the order in which they are sent."""
    needs_one_bucket: bool = False
    """Whether it decides over the whole gradient, so that the mount `ddp` refuses several buckets."""


@dataclass(frozen=True)
class Calibration:
    """Everything that a prediction needs."""

    machine: Mapping[str, Any]
    time: str
    """When it was measured, in ISO 8601."""
    world_size: int
    ranks_per_node: int
    links: tuple[Samples, ...]
    model: ModelTimes
    methods: tuple[MethodTimes, ...]


def write(path: Path, calibration: Calibration) -> None:
    """Write a calibration.

    Raises:
        sage.storage.NotWritten: (an OSError) the file cannot be written.
    """
    storage.write_json(path, {"format": CALIBRATION.version, **asdict(calibration)})


def read(path: Path) -> Calibration:
    """Read a calibration.

    Raises:
        FileNotFoundError: there is no such file.
        sage.storage.Unreadable: (a ValueError) it cannot be read, or is no calibration.
    """
    content = storage.read_json(path, CALIBRATION)
    model = content["model"]
    return Calibration(
        machine=content["machine"],
        time=content["time"],
        world_size=content["world_size"],
        ranks_per_node=content["ranks_per_node"],
        links=tuple(
            Samples(**_only(link, SAMPLES, seconds=tuple(link["seconds"]))) for link in content["links"]
        ),
        model=ModelTimes(
            **_only(
                model,
                MODEL,
                parameters=tuple(
                    Parameter(**_only(parameter, PARAMETER)) for parameter in model["parameters"]
                ),
                **{name: tuple(model[name]) for name in MODEL_TIMES},
            )
        ),
        methods=tuple(_method(method) for method in content["methods"]),
    )


def _method(content: dict[str, Any]) -> MethodTimes:
    return MethodTimes(
        reducer=content["reducer"],
        options=content["options"],
        encode_seconds=tuple(content["encode_seconds"]),
        decode_seconds={int(w): tuple(seconds) for w, seconds in content["decode_seconds"].items()},
        density=content["density"],
        messages={
            int(w): tuple(Message(**_only(message, MESSAGE)) for message in messages)
            for w, messages in content["messages"].items()
        },
        needs_one_bucket=content.get("needs_one_bucket", False),
    )


def _only(content: dict[str, Any], kind: Kind, **changed: Any) -> dict[str, Any]:
    """The keys that this version knows, some of them changed; a newer version may have added others."""
    return {**{name: content[name] for name in kind.keys}, **changed}
