"""Which files of a run folder are uploaded, and the list of their checksums at the URL, `checksums.json`."""

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sage.storage.errors import Unreadable
from sage.storage.read import checked, parse_json
from sage.storage.remote.store import Store
from sage.storage.schema import Kind
from sage.storage.write import json_text

CHECKSUMS = "checksums.json"

KIND = Kind(
    name="the checksums of an uploaded run",
    keys={"files": dict[str, dict[str, int | str]]},
    remedy="run `sage sync`, which uploads the files again",
)

LARGEST = 2**28
"""Bytes of the largest file that is read from a URL; see `sage.storage.read.MAX_BYTES`."""

_CHECKPOINT = re.compile(r"checkpoints/step-(\d{8,})/[^/]+")

_OF_THE_LAST_START = ("result.json", "failure.json")
"""Files that a run removes when it is started again."""


@dataclass(frozen=True)
class Sum:
    """The length and the checksum of a file."""

    bytes: int
    sha256: str
    """"" if it is not known."""


def files(folder: Path) -> list[str]:
    """List the files of a run folder that are uploaded, by their paths in it, in the order of their upload.

    Checkpoints come last, and in them the index. Links and names that begin with a dot are left out.
    """
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".") and name != CHECKSUMS]
        found += [path.relative_to(folder).as_posix() for path in paths if _is_regular(path)]
    return sorted(found, key=lambda name: (_order(name), name))


def is_run(folder: Path) -> bool:
    """Whether a folder is the folder of a run that has started."""
    return any((folder / name).is_file() for name in ("config.json", "metrics.jsonl"))


def superseded(here: list[str], there: Mapping[str, Sum], *, all_others: bool = False) -> list[str]:
    """List the files at the URL that the run itself has removed on this machine, in the order of removal.

    These are files of checkpoints that are older than the newest uploaded one, and files of an earlier start.
    What a user has removed here stays at the URL, unless `all_others` asks for all files that are not here.
    """
    local = set(here)
    if all_others:
        return sorted(there.keys() - local, key=lambda name: not name.endswith("/index.json"))
    complete = [name for name in here if name.endswith("/index.json") and name in there]
    newest = max((step for name in complete if (step := _step(name)) is not None), default=-1)
    gone = [name for name in there if name not in local]
    old = [name for name in gone if (step := _step(name)) is not None and step < newest]
    old.sort(key=lambda name: not name.endswith("/index.json"))  # no index without its files
    earlier = [name for name in gone if name in _OF_THE_LAST_START and "metrics.jsonl" in local]
    return earlier + old


def read(store: Store, run: str) -> dict[str, Sum]:
    """Return the files of a run at the URL; their checksums are those that the last upload wrote.

    Raises:
        StoreError: (an OSError) The store does not answer, or refuses.
    """
    sizes = store.sizes(run)
    listed = {name.removeprefix(f"{run}/"): size for name, size in sizes.items()}
    known: dict[str, Sum] = {}
    if 0 < listed.pop(CHECKSUMS, 0) <= LARGEST:
        known = parsed(store.read(f"{run}/{CHECKSUMS}"))
    unknown = Sum(-1, "")
    return {
        name: known[name] if known.get(name, unknown).bytes == size else Sum(size, "")
        for name, size in listed.items()
    }


def write(store: Store, run: str, there: Mapping[str, Sum]) -> None:
    """Write the checksums of the files of a run at the URL."""
    content = {"files": {name: vars(entry) for name, entry in sorted(there.items()) if entry.sha256}}
    store.write(f"{run}/{CHECKSUMS}", (json_text(content, indent=1) + "\n").encode())


def parsed(content: bytes) -> dict[str, Sum]:
    """Return the checksums in the content of `checksums.json`; empty if it is damaged."""
    try:
        found = checked(Path(CHECKSUMS), parse_json(Path(CHECKSUMS), content, KIND), KIND)
    except Unreadable:
        return {}
    sums = {}
    for name, entry in found["files"].items():
        num_bytes, sha256 = entry.get("bytes"), entry.get("sha256")
        if isinstance(num_bytes, int) and isinstance(sha256, str):
            sums[name] = Sum(num_bytes, sha256)
    return sums


def sum_of(file: BinaryIO, num_bytes: int) -> Sum:
    """Read a file up to this length, and return the sum of what was read."""
    sha256, left = hashlib.sha256(), num_bytes
    while left and (piece := file.read(min(left, 2**20))):
        sha256.update(piece)
        left -= len(piece)
    return Sum(num_bytes - left, sha256.hexdigest())


def _order(name: str) -> int:
    if name in _OF_THE_LAST_START:
        return 1
    if _step(name) is None:
        return 0
    return 3 if name.endswith("/index.json") else 2


def _step(name: str) -> int | None:
    """Return the step of a file of a checkpoint, or None."""
    found = _CHECKPOINT.fullmatch(name)
    return int(found[1]) if found else None


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:  # it has been removed
        return False
