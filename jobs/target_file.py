"""The part of a sweep's file that `sage target` writes: the targets, and the chosen tuning points.

It is at the end of the file, between two comments. The rest of the file is not changed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage import storage
from sage.storage import Kind

BEGIN = "# Written by sage target: to change it, run the command again"
END = "# End of what sage target wrote"

REMEDY = "remove the tables [[targets]] and [[chosen]], and run `sage target` again"

WRITTEN = Kind(
    name="what sage target wrote",
    keys={
        "targets?": list[Any],
        "chosen?": list[Any],
    },
    remedy=REMEDY,
)
TARGET = Kind(
    name="a table [[targets]]",
    keys={
        "workload": str,
        "world_size": int,
        "metric": str,
        "value": float,
        "reference": str,
        "origin": str,
        "before": bool,
    },
    remedy=REMEDY,
)
CHOSEN = Kind(
    name="a table [[chosen]]", keys={"method": str, "point": dict[str, Any], "scores": str}, remedy=REMEDY
)


@dataclass(frozen=True, kw_only=True)
class FixedTarget:
    """A target as the sweep's file has it."""

    workload: str
    world_size: int
    metric: str
    value: float
    reference: str
    """The method that the target is from: the name of its run with seed 0, before tuning."""
    origin: str
    """How the value was fixed, in words."""
    before: bool
    """Whether no run of the comparison was finished when the target was fixed."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The tuning point of a method."""

    method: str
    point: dict[str, Any]
    scores: str
    """The median final metric of each point, in words."""


def parse(path: Path, targets: Any, chosen: Any) -> tuple[list[FixedTarget], list[Choice]]:
    """Read the tables of a sweep's file.

    Raises:
        storage.Damaged: a table is invalid.
    """
    storage.checked(path, {"targets": targets, "chosen": chosen}, WRITTEN)
    return (
        [FixedTarget(**_checked(path, table, TARGET)) for table in targets],
        [Choice(**_checked(path, table, CHOSEN)) for table in chosen],
    )


def _checked(path: Path, table: Any, kind: Kind) -> dict[str, Any]:
    content = storage.checked(path, table, kind)
    return {name: content[name] for name in kind.keys}


def write(path: Path, targets: Iterable[FixedTarget], chosen: Iterable[Choice]) -> None:
    """Replace the part that `sage target` wrote, or append it; all other lines stay as they are."""
    text = storage.read_text(path)
    before, begin, rest = text.partition(BEGIN)
    after = rest.partition(END)[2].lstrip("\n") if begin else ""
    parts = [BEGIN]
    parts += [_table("targets", vars(target)) for target in targets]
    parts += [_table("chosen", vars(choice)) for choice in chosen]
    block = "\n".join([*parts, END, ""])
    head = before.rstrip("\n")
    storage.write_text(path, f"{head}\n\n{block}{after}")


def _table(name: str, values: Mapping[str, Any]) -> str:
    lines = (f"{key} = {_value(value)}" for key, value in values.items())
    return "\n".join([f"[[{name}]]", *lines, ""])


def _value(value: Any) -> str:
    """A value in TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # as in JSON, except that TOML does not allow DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
