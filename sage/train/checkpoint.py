"""Writes checkpoints atomically, and verifies their checksums before they are loaded.

    checkpoints/step-00000123/
        shared.pt      state that all ranks have in common, written by rank 0: model, optimiser, ...
        rank-0000.pt   state of one rank: residual, random generators, ...
        index.json     step, world size, and the sha256 and length of each file

A checkpoint is written to a folder whose name begins with `.tmp-`. The folder is renamed once all its files
are on disk. If a checkpoint of the same step exists, it is first renamed to `.old-step-...`, and it still
counts as a checkpoint until the new one has the final name. A complete checkpoint therefore exists at every
moment of a replacement.
"""

import json
import os
import random
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sage import storage
from sage.data.fetch import sha256_of

_NAME = re.compile(r"(?:\.old-)?step-(\d{8,})")
_LEAVES = (Tensor, nn.Parameter, bool, int, float, str, type(None))


@dataclass(frozen=True)
class Found:
    """A verified checkpoint: the checksums of all its files match its index."""

    path: Path
    step: int
    world_size: int


def save(
    folder: Path,
    step: int,
    *,
    shared: dict[str, Any] | None,
    own: dict[str, Any],
    rank: int,
    world_size: int,
    gather: Callable[[str], list[str]],
    keep: int = 2,
) -> None:
    """Write the checkpoint of one step; a collective call that returns once the checkpoint is complete.

    Only the newest `keep` checkpoints are kept. Checkpoints of later steps are removed as well: they are
    obsolete, because the run has been resumed from an earlier step.

    Args:
        folder: The folder of the checkpoints, the same for all ranks.
        shared: The state that all ranks have in common on rank 0; None on the other ranks.
        own: The state of this rank.
        gather: A collective that returns the strings of all ranks, in order of rank.
        keep: Number of checkpoints to keep.

    Raises:
        ValueError: A value could not be loaded without running code from the file.
        sage.storage.NotWritten: (an OSError) The file system refuses to write, for example because the disk
            is full. Existing checkpoints are unchanged.
    """
    assert (shared is not None) == (rank == 0), "only rank 0 writes the shared state"
    files = {f"rank-{rank:04d}.pt": own}
    if shared is not None:
        files["shared.pt"] = shared
    for name, state in files.items():
        _refuse_code(state, name)

    final = folder / f"step-{step:08d}"
    draft = folder / f".tmp-{final.name}"
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        _clean_up(folder)
        draft.mkdir()
    gather("")  # no rank writes before the new folder exists and the remains of interrupted saves are removed
    try:
        entries = {name: _write(draft / name, state) for name, state in files.items()}
    except OSError:
        for name in files:  # the disk may be full; the next save removes the files of the other ranks
            with suppress(OSError):
                (draft / name).unlink(missing_ok=True)
        raise
    gathered = gather(json.dumps(entries))
    if rank == 0:
        for text in gathered:
            entries |= json.loads(text)
        index = {"step": step, "world_size": world_size, "files": entries}
        storage.write_json(draft / "index.json", index, storage.CHECKPOINT)
        _publish(draft, final)
        _prune(folder, step, keep)
    gather("")  # no rank continues before the checkpoint has its final name


def newest(folder: Path) -> Found | None:
    """Find the newest valid checkpoint, and warn about each newer one that is invalid.

    It reads all bytes of the checkpoint, so only rank 0 should call it and broadcast the result.
    """
    for path in sorted(_checkpoints(folder), key=lambda path: (_step(path), path.name), reverse=True):
        try:
            return _verified(path)
        except ValueError as error:
            warnings.warn(f"checkpoint {path} is not used: {error}", stacklevel=2)
    return None


def load(path: Path, rank: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the shared state and the state of this rank, with all tensors on the CPU.

    Raises:
        ValueError: The checkpoint has no file for this rank, or one of its files is damaged.
    """
    return load_shared(path), load_own(path, rank)


def load_shared(path: Path) -> dict[str, Any]:
    """Read the state that all ranks have in common; raises the same errors as `load`."""
    return _read(path / "shared.pt")


def load_own(path: Path, rank: int) -> dict[str, Any]:
    """Read the state of one rank; raises the same errors as `load`."""
    own_path = path / f"rank-{rank:04d}.pt"
    if not storage.is_there(own_path):
        raise ValueError(
            f"checkpoint {path} was written by {len(list(path.glob('rank-*.pt')))} ranks and has no state of "
            f"rank {rank}: resume with the same number of ranks, or start a new run in another folder"
        )
    return _read(own_path)


def rng_state() -> dict[str, Any]:
    """Return the state of the global random generators: torch, Python, NumPy, and the current GPU."""
    mersenne = np.random.get_state(legacy=False)
    key = torch.from_numpy(mersenne["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": {"key": key, "pos": mersenne["state"]["pos"]},
        "numpy_gauss": {"has_gauss": mersenne["has_gauss"], "gauss": mersenne["gauss"]},
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the state of the global random generators that `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    key, pos = state["numpy"]["key"].numpy().astype(np.uint32), state["numpy"]["pos"]
    mersenne = {"bit_generator": "MT19937", "state": {"key": key, "pos": pos}, **state["numpy_gauss"]}
    np.random.set_state(mersenne)


def _refuse_code(value: Any, where: str) -> None:
    """Refuse all but plain data. Subclasses are refused too: loading NumPy's float64 needs NumPy code."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _refuse_code(key, f"a key of {where}")
            _refuse_code(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            _refuse_code(item, f"{where}[{i}]")
    elif type(value) not in _LEAVES:
        raise ValueError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}; allowed are tensors, "
            "bools, ints, floats, strings, None, and dicts, lists and tuples of these: convert it first"
        )


def _write(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    storage.write_tensors(path, state)
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def _read(path: Path) -> dict[str, Any]:
    remedy = f"remove {path.parent} to resume from the checkpoint before it, or use --fresh"
    try:
        return storage.read_tensors(path, "a checkpoint's file", remedy=remedy)
    except FileNotFoundError as error:
        raise storage.Damaged(path, "is missing", remedy) from error


def _verified(path: Path) -> Found:
    """Compare a checkpoint with its index; raise a ValueError that names the difference."""
    try:
        index = storage.read_json(path / "index.json", storage.CHECKPOINT)
    except FileNotFoundError as error:
        raise ValueError("index.json is missing") from error
    except storage.Unreadable as error:
        raise ValueError(f"index.json {error.reason.lstrip(', ')}") from error
    step, world_size = index["step"], index["world_size"]
    listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in index["files"].items()}
    named = {"shared.pt", *(f"rank-{rank:04d}.pt" for rank in range(world_size))}
    if step != _step(path) or set(listed) != named:
        wrong = sorted(set(listed) ^ named)[:4]
        raise ValueError(
            f"index.json describes step {step} of {world_size} ranks; missing or unlisted files: {wrong}"
        )
    for name, (num_bytes, sha256) in listed.items():
        try:
            found_bytes = (path / name).stat().st_size
            found_sha256 = sha256_of(path / name) if found_bytes == num_bytes else "not computed"
        except (OSError, storage.Unreadable) as error:
            raise ValueError(f"{name} cannot be read ({error})") from error
        if (found_bytes, found_sha256) != (num_bytes, sha256):
            raise ValueError(
                f"{name} should have {num_bytes} bytes with the sha256 {sha256}, "
                f"and has {found_bytes} with {found_sha256}"
            )
    return Found(path, step, world_size)


def _checkpoints(folder: Path) -> list[Path]:
    """List the checkpoint folders, recognised by name; empty if the folder does not exist.

    Raises:
        sage.storage.Unreadable: The folder cannot be listed. Starting from scratch would then lose the
            existing checkpoints.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage.Unreadable(folder, f"cannot be listed: {error.strerror}", "make it readable") from error
    return [folder / name for name in names if _NAME.fullmatch(name)]


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1])


def _clean_up(folder: Path) -> None:
    """Remove the remains of an interrupted save."""
    for path in folder.glob(".tmp-*"):
        storage.remove(path)
    for path in folder.glob(".old-*"):
        replacement = folder / path.name.removeprefix(".old-")
        if replacement.exists():
            _discard(path)
        else:
            path.rename(replacement)


def _publish(draft: Path, final: Path) -> None:
    old = final.with_name(f".old-{final.name}")
    if final.exists():
        final.rename(old)
    draft.rename(final)
    storage.sync_folder(final.parent)
    if old.exists():
        _discard(old)


def _prune(folder: Path, step: int, keep: int) -> None:
    by_step = sorted(_checkpoints(folder), key=_step, reverse=True)
    ours = [path for path in by_step if _step(path) <= step]
    for path in set(by_step) - set(ours[:keep]):
        _discard(path)


def _discard(path: Path) -> None:
    """Rename a checkpoint, then remove it: a partly removed one must not look like a damaged checkpoint."""
    removed = path.with_name(f".tmp-{path.name}")
    path.rename(removed)
    storage.remove(removed)
