"""The kinds of file that SAGE writes: which keys they have, of which types, and what to do about damage.

A type is Python's, a union, `dict[str, T]`, `list[T]`, a `Literal`, `Any`, or a mapping of an object's own
keys to their types. A key that ends in `?` may be missing. `float` allows whole numbers too. Numbers are
finite and not beyond `LARGEST`, so that sums and plots of them are finite. Further keys are allowed, so that
a newer version can add some without a new format.

A file's version is its key `format`. A file without the key is of version 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

LARGEST = 1e290
"""The largest number that a file may hold where one is expected; a sum of 10^10 of them is finite."""

Fits = Callable[[Any], bool]


class AnyFloat:
    """Stands for a number that need not be finite, in a file of tensors."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a file of one kind holds, and what to do where one is damaged."""

    name: str
    """What messages call it."""
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Its keys and the types of their values, as the module's docstring says."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further keys, by the value of the key `kind`; no other value of it is allowed."""
    check: Callable[[dict[str, Any]], str] | None = None
    """What else is wrong with a content whose keys are right; "" for nothing."""
    version: int = 1
    """The newest format that this code reads."""
    cure: str = ""
    """What to do about a damaged one."""

    def fault(self, content: dict[str, Any]) -> str:
        """What is wrong with an object of this kind, as "needs the key 'steps'"; "" for nothing."""
        keys, fits = self._compiled[""]
        if self.variants:
            kind = content.get("kind")
            if not (isinstance(kind, str) and kind in self.variants):
                if "kind" not in content:
                    return f"{self.name} needs the key 'kind'"
                return f"'kind' is {_shown(kind)}, not {' or '.join(map(repr, self.variants))}"
            keys, fits = self._compiled[kind]
        if not fits(content):
            return _fault(content, keys, self.name)
        return self.check(content) if self.check is not None else ""

    @cached_property
    def _compiled(self) -> dict[str, tuple[Mapping[str, Any], Fits]]:
        every = {"": {}, **self.variants}
        return {name: ({**self.keys, **keys}, _fits({**self.keys, **keys})) for name, keys in every.items()}


def _fits(kind: Any) -> Fits:
    """A test for a type; made once for each kind of file, as the lines of a run's metrics are many."""
    if isinstance(kind, Mapping):
        needed = [(key, _fits(each)) for key, each in kind.items() if not key.endswith("?")]
        others = [(key[:-1], _fits(each)) for key, each in kind.items() if key.endswith("?")]
        return lambda value: (
            isinstance(value, dict)
            and all(key in value and fits(value[key]) for key, fits in needed)
            and all(key not in value or fits(value[key]) for key, fits in others)
        )
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        arms = [_fits(each) for each in args]
        return lambda value: any(fits(value) for fits in arms)
    if origin is dict:
        of_values = _fits(args[1])
        return lambda value: isinstance(value, dict) and all(map(of_values, value.values()))
    if origin is list:
        of_items = _fits(args[0])
        return lambda value: type(value) is list and all(map(of_items, value))
    if origin is Literal:
        return lambda value: type(value) is str and value in args
    if kind is Any:
        return lambda value: True
    if kind is float:
        return lambda value: type(value) in (float, int) and -LARGEST < value < LARGEST
    if kind is AnyFloat:
        return lambda value: type(value) in (float, int)
    if kind is int:
        return lambda value: type(value) is int and -(2**63) <= value < 2**63
    if kind in (None, NoneType):
        return lambda value: value is None
    if kind is dict:
        return lambda value: isinstance(value, dict)
    return lambda value: type(value) is kind


def _fault(value: Any, kind: Any, name: str) -> str:
    """In words where a value does not fit."""
    if get_origin(kind) in (Union, UnionType):
        same = [each for each in get_args(kind) if (get_origin(each) or each) is type(value)]
        if same and same[0] not in (int, float):
            return _fault(value, same[0], name)
    if isinstance(kind, Mapping) and isinstance(value, dict):
        for key, each in kind.items():
            plain = key.removesuffix("?")
            if plain not in value:
                if plain == key:
                    return f"{name} needs the key {key!r}"
            elif not _fits(each)(value[plain]):
                return _fault(value[plain], each, repr(plain))
    if get_origin(kind) is dict and isinstance(value, dict):
        of_values = get_args(kind)[1]
        key = next(key for key, each in value.items() if not _fits(of_values)(each))
        return _fault(value[key], of_values, f"{name}, {_shown(key)},")
    if get_origin(kind) is list and isinstance(value, list):
        of_items = get_args(kind)[0]
        index = next(i for i, each in enumerate(value) if not _fits(of_items)(each))
        return _fault(value[index], of_items, f"item {index} of {name}")
    return f"{name} is {_shown(value)}, not {_in_words(kind)}"


def type_of(value: Any) -> str:
    """What JSON calls a value: an object, a list, a text, a number, true or false, null."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", NoneType: "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    if isinstance(value, str) and len(value) <= 40:
        return repr(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number with too many digits"
    return f"{value!r}" if isinstance(value, int | float) else type_of(value)


def _in_words(kind: Any) -> str:
    if isinstance(kind, Mapping):
        return "an object"
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, args))
    if origin is Literal:
        return " or ".join(map(repr, args))
    words: dict[Any, str] = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        AnyFloat: "a number",
        NoneType: "null",
    }
    return words.get(origin or kind, "null")


# A run's folder.

RERUN = "run it again with --fresh, or remove its folder"
NUMBER = float | None
"""A number; null where it was not finite, or not measured."""

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
    cure=RERUN,
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
    },
    cure=RERUN,
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
        "payload_per_step?": dict[str, NUMBER],
        "wire_sent_per_step?": NUMBER,
        "wire_received_per_step?": NUMBER,
        "density_asked?": NUMBER,
        "density_had?": NUMBER,
    },
    check=_lacks_its_metric,
    cure="remove it, and the same command goes on from the last checkpoint, or run it again with --fresh",
)

FAILURE = Kind(
    name="the reason for a run's failure",
    keys={"error": str, "rank?": int | None, "status?": int, "time?": str},
    cure="remove it, or run the run again",
)

METRICS = Kind(
    name="a record",
    keys={"step": int},
    variants={
        "step": {
            "epoch": int,
            **dict.fromkeys(("loss?", "lr?", "density_asked?", "density_had?", "density_union?"), NUMBER),
            **dict.fromkeys(("threshold?", "residual_norm?", "gradient_norm?", "seconds?"), NUMBER),
            **dict.fromkeys(("wire_sent?", "wire_received?"), NUMBER),
            **dict.fromkeys(("bytes?", "phases?"), dict[str, NUMBER] | None),
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
    cure=(
        "a crash tears the last line only, so something else changed this file: remove the line to read the "
        "rest, or run it with --fresh"
    ),
)

# A checkpoint.


def _lists_its_files(index: dict[str, Any]) -> str:
    world_size, files = index["world_size"], index["files"]
    if world_size < 1 or len(files) != world_size + 1:
        return f"it lists {len(files)} files, where {world_size} ranks have {world_size + 1}"
    entry = Kind(name="an entry", keys={"bytes": int, "sha256": str})
    faults = (f"of {name!r}, {fault}" for name, each in files.items() if (fault := entry.fault(each)))
    return next(faults, "")


CHECKPOINT = Kind(
    name="a checkpoint's index",
    keys={"step": int, "world_size": int, "files": dict[str, dict[str, Any]]},
    check=_lists_its_files,
    cure="remove this checkpoint's folder",
)

SHARED = Kind(
    name="what the ranks of a checkpoint share",
    keys={
        "step": int,
        "seconds": float,
        **dict.fromkeys(("model", "optimizer", "average", "loss_scale"), dict),
    },
)

OWN = Kind(
    name="what one rank of a checkpoint has",
    keys={
        **dict.fromkeys(("feedback", "before", "task", "buffers"), dict),
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
    },
)

VOCABULARY = Kind(
    name="a vocabulary",
    keys={"tokens": list[str], "sums": dict[str, str]},
    cure="remove its folder, and it is made again",
)
