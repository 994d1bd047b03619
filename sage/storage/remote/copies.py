"""Copies the files of runs that reports need from a URL to a folder on this machine.

These are JSON files; checkpoints and TensorBoard files are not copied. A file whose copy has the checksum in
`checksums.json` is not transferred again. `restore` copies all files of one run, to resume it.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sage.storage.errors import NotWritten
from sage.storage.kinds import NO_RUNS
from sage.storage.remote import checksums
from sage.storage.remote.checksums import CHECKSUMS, LARGEST, Sum
from sage.storage.remote.store import Store, StoreError
from sage.storage.write import remove, write_bytes

NAMES = ("config.json", "manifest.json", "metrics.jsonl", "result.json", "failure.json")
"""The files of a run that are copied."""


def fetch(url: str, folder: Path) -> None:
    """Copy the files of all runs below a URL to a folder, and remove copies of files that are gone there.

    Raises:
        ValueError: No run is at the URL.
        StoreError: (an OSError) The store does not answer, or refuses.
    """
    store = Store(url)
    sizes = {name: size for name, size in store.sizes().items() if _is_wanted(name)}
    if not any(name.endswith(("metrics.jsonl", "config.json")) for name in sizes):
        raise ValueError(f"no runs are at {url}; `sage sync FOLDER {url}` uploads those of a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path in list(folder.rglob("*")):
        if path.is_symlink() or (path.is_file() and path.relative_to(folder).as_posix() not in sizes):
            remove(path)
    known = _checksums(store, sizes)
    for name, size in sizes.items():
        path = folder / name
        expected = known.get(name, Sum(-1, ""))
        if name.endswith(CHECKSUMS) or (expected.bytes == size and _copy_sum(path) == expected):
            continue
        if size > LARGEST:
            _warn(f"{url}/{name} is left out: it has {size} bytes; at most {LARGEST} are read")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, store.read(name))
        # Without a result the run may be in progress, and its records ahead of their checksums.
        is_finished = f"{name.rpartition('/')[0]}/result.json" in known
        if is_finished and expected.bytes == size and _copy_sum(path) != expected:
            _warn(f"{url}/{name} differs from its checksum; run `sage sync` again")


def restore(url: str, folder: Path) -> None:
    """Copy a run with all its files to a run folder in which there is none, if it is below a URL.

    A checkpoint without an index is left out. The files get their names once all are here.

    Raises:
        StoreError: (an OSError) The store does not answer, or refuses.
        sage.storage.NotWritten: (an OSError) The file system refuses to write.
    """
    store, run = Store(url), folder.name
    names = [name.removeprefix(f"{run}/") for name in store.sizes(run)]
    names = [name for name in names if _is_restored(name, names)]
    draft = folder / f".restored.{os.urandom(8).hex()}.partial"
    try:
        for name in names:
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            store.copy(f"{run}/{name}", path)
        top = {name.partition("/")[0] for name in names}
        # The configuration and the records, by which a run is recognised, come last.
        for name in sorted(top, key=lambda name: (name.endswith((".json", ".jsonl")), name)):
            remove(folder / name)
            (draft / name).rename(folder / name)
    except StoreError:
        raise
    except OSError as error:
        raise NotWritten(folder, error) from error
    finally:
        with suppress(OSError):
            remove(draft)


def _is_restored(name: str, names: Sequence[str]) -> bool:
    """Whether a file of a run is copied to another machine."""
    parts = name.split("/")
    if name == CHECKSUMS or any(part.startswith(".") for part in parts):
        return False
    return parts[0] != "checkpoints" or f"{name.rpartition('/')[0]}/index.json" in names


def _is_wanted(name: str) -> bool:
    *folders, last = name.split("/")
    hidden = any(part.startswith(".") or part in NO_RUNS for part in folders)
    return last in (*NAMES, CHECKSUMS) and not hidden


def _checksums(store: Store, sizes: dict[str, int]) -> dict[str, Sum]:
    """Return the known checksums of the files at the URL."""
    known: dict[str, Sum] = {}
    for name, size in sizes.items():
        run, _, last = name.rpartition("/")
        if last == CHECKSUMS and 0 < size <= LARGEST:
            found = checksums.parsed(store.read(name))
            known |= {f"{run}/{file}" if run else file: entry for file, entry in found.items()}
    return known


def _copy_sum(path: Path) -> Sum | None:
    with suppress(OSError), open(path, "rb") as file:
        return checksums.sum_of(file, 2**62)
    return None


def _warn(text: str) -> None:
    print(f"sage: {text}", file=sys.stderr, flush=True)
