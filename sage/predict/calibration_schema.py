"""The schema of a calibration's file."""

from collections.abc import Iterator
from typing import Any, Literal

from sage.storage import Kind

Collective = Literal["all_reduce", "all_gather", "ragged_gather", "broadcast", "all_to_all", "reduce_scatter"]
"""The collectives that reducers use; `ragged_gather` gathers vectors of unequal length without padding."""

Scope = Literal["inter", "intra"]
"""Whether ranks of several nodes communicate, or the ranks of one node."""

MODEL_TIMES = ("forward_seconds", "backward_seconds", "optimizer_seconds", "gamma")

SAMPLES = Kind(
    name="a measurement of a link",
    keys={
        "collective": Collective,
        "scope": Scope,
        "ranks": int,
        "bytes": int,
        "seconds": list[float],
    },
)
PARAMETER = Kind(name="a parameter", keys={"name": str, "numel": int, "ready_seconds": float})
MESSAGE = Kind(name="a message", keys={"collective": Collective, "bytes": int})
METHOD = Kind(
    name="a method",
    keys={
        "reducer": str,
        "options": dict[str, Any],
        "encode_seconds": list[float],
        "decode_seconds": dict[str, list[float]],
        "density": float | None,
        "messages": dict[str, list[dict[str, Any]]],
        "needs_one_bucket?": bool,
    },
)
MODEL = Kind(
    name="the model",
    keys={
        "workload": str,
        "batch_size": int,
        "parameters": list[dict[str, Any]],
        **dict.fromkeys(MODEL_TIMES, list[float]),
    },
)


def _fault(content: dict[str, Any]) -> str:
    """Return the first fault in the nested objects and their values; "" if there is none."""
    return next((fault for fault in _faults(content) if fault), "")


def _faults(content: dict[str, Any]) -> Iterator[str]:
    yield from _least(content, "the calibration", 1, "world_size", "ranks_per_node")
    for index, link in enumerate(content["links"]):
        name = f"item {index} of 'links'"
        yield _within(name, SAMPLES, link)
        yield from _least(link, name, 2, "ranks")
        yield from _least(link, name, 1, "bytes")
        yield _times(f"{name}, 'seconds'", link["seconds"])
    model = content["model"]
    yield _within("'model'", MODEL, model)
    yield from _least(model, "'model'", 1, "batch_size")
    for name in MODEL_TIMES:
        yield _times(f"'model', {name!r}", model[name])
    yield "" if model["parameters"] else "'model' has no parameters"
    for index, parameter in enumerate(model["parameters"]):
        name = f"item {index} of 'parameters'"
        yield _within(name, PARAMETER, parameter)
        yield from _least(parameter, name, 1, "numel")
        yield from _least(parameter, name, 0, "ready_seconds")
    if not any(parameter["ready_seconds"] > 0 for parameter in model["parameters"]):
        yield "'model': no gradient has ready_seconds above 0"
    for index, method in enumerate(content["methods"]):
        yield from _faults_of_method(f"item {index} of 'methods'", method)


def _faults_of_method(name: str, content: dict[str, Any]) -> Iterator[str]:
    yield _within(name, METHOD, content)
    yield _times(f"{name}, 'encode_seconds'", content["encode_seconds"])
    for key in ("decode_seconds", "messages"):
        yield "" if content[key] else f"{name} has no {key!r}"
        wrong = (w for w in content[key] if not (w.isascii() and w.isdecimal() and int(w) > 0))
        yield from (
            f"{name}, {key!r} has the world size {w!r}; allowed is a whole number above 0" for w in wrong
        )
    for seconds in content["decode_seconds"].values():
        yield _times(f"{name}, 'decode_seconds'", seconds)
    for messages in content["messages"].values():
        for message in messages:
            yield _within(f"{name}, 'messages'", MESSAGE, message)
            yield from _least(message, f"{name}, 'messages'", 0, "bytes")


def _within(name: str, kind: Kind, content: dict[str, Any]) -> str:
    fault = kind.fault(content)
    return f"{name}: {fault}" if fault else ""


def _least(content: dict[str, Any], name: str, least: int, *keys: str) -> Iterator[str]:
    for key in keys:
        if content[key] < least:
            yield f"{name} has {key} {content[key]}; allowed is {least} or more"


def _times(name: str, seconds: list[float]) -> str:
    if not seconds:
        return f"{name} is empty"
    return "" if min(seconds) >= 0 else f"{name} has {min(seconds)}; allowed is 0 or more"


CALIBRATION = Kind(
    name="a calibration",
    keys={
        "machine": dict[str, Any],
        "time": str,
        "world_size": int,
        "ranks_per_node": int,
        "links": list[dict[str, Any]],
        "model": dict[str, Any],
        "methods": list[dict[str, Any]],
    },
    check=_fault,
    remedy="calibrate again",
)
"""The format of the file."""
