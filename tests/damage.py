"""Damages files at random in the ways that disks, crashes, users and other programs do."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    5,
    300_000_000,
    10**30,
    1e308,
    0.5,
    "",
    "x",
    "\x1b[31m\n",
    [],
    [1],
    {},
    {"a": {"b": []}},
    [[[[]]]],
)
"""Values of the wrong type, or of the right type and far out of range."""

CONTENTS = (
    b"",
    b"\n",
    b"{}",
    b"[]",
    b"5\n",
    b"null",
    b"NaN",
    b'{"kind":"step"}\n',
    b'{"format": 99}\n',
    b"[" * 50_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"steps": ' + b"9" * 6000 + b"}",
    b"\xff\xfe\x00",
    bytes(range(256)) * 10,
)
"""Contents that replace a whole file."""


def damage(path: Path, draw: random.Random) -> str:
    """Damage a file in one way and return its description."""
    ways: list[Callable[[Path, random.Random], str]] = [_cut, _flip, _fill, _other_thing]
    if path.suffix in (".json", ".jsonl"):
        ways += [_change_json] * 6
    if path.suffix == ".pt":
        ways += [_change_tensors] * 6
    return draw.choice(ways)(path, draw)


def _cut(path: Path, draw: random.Random) -> str:
    size = draw.randrange(max(1, path.stat().st_size))
    os.truncate(path, size)
    return f"cut to {size} bytes"


def _flip(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 3, 100))):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(content)
    return "bytes changed"


def _fill(path: Path, draw: random.Random) -> str:
    content = draw.choice(CONTENTS)
    path.write_bytes(content)
    return f"replaced by {content[:20]!r}"


def _other_thing(path: Path, draw: random.Random) -> str:
    thing = draw.choice(("FIFO", "folder", "dangling link", "link to itself", "link to a device", "absent"))
    path.unlink()
    if thing == "FIFO":
        os.mkfifo(path)
    elif thing == "folder":
        path.mkdir()
    elif thing == "dangling link":
        path.symlink_to("nowhere")
    elif thing == "link to itself":
        path.symlink_to(path.name)
    elif thing == "link to a device":
        path.symlink_to("/dev/zero")
    return thing


def _change_json(path: Path, draw: random.Random) -> str:
    if path.suffix == ".json":
        value = json.loads(path.read_bytes())
        result = change(value, draw)
        path.write_text(json.dumps(value))
        return result
    lines = path.read_bytes().splitlines()
    index = draw.randrange(len(lines))
    value = json.loads(lines[index])
    result = change(value, draw)
    lines[index] = json.dumps(value).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")
    return f"line {index + 1}: {result}"


def _change_tensors(path: Path, draw: random.Random) -> str:
    value = torch.load(path, weights_only=True)
    result = change(value, draw)
    resave(path, value)
    return f"whole, but {result}"


def resave(path: Path, value: Any) -> None:
    """Write a file of tensors and, in a checkpoint, its index entry, so that the checksums match."""
    torch.save(value, path)
    index = path.with_name("index.json")
    if index.exists():
        listed = json.loads(index.read_text())
        content = path.read_bytes()
        listed["files"][path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        index.write_text(json.dumps(listed))


def change(value: Any, draw: random.Random) -> str:
    """Remove or replace a random key in a nested value."""
    where = ""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            value["more"] = 1
            return f"{where} has more"
        key = draw.choice(keys)
        where += f"[{key!r}]"
        inner = value[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.6:
            value = inner
            continue
        if draw.random() < 0.3:
            del value[key]
            return f"{where} removed"
        if isinstance(inner, torch.Tensor) and draw.random() < 0.5:
            value[key] = draw.choice(
                (inner.new_zeros(1), inner.new_zeros(3, 2), inner.double(), inner.reshape(-1)[:0])
            )
            return f"{where} of another shape or type"
        value[key] = draw.choice(WRONG)
        return f"{where} = {value[key]!r}"


def copied(source: Path, target: Path) -> Path:
    """Replace the target by a copy of a folder."""
    if target.is_symlink() or target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    return target
