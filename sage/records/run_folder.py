"""Manages a run folder: its lock, its result, and the reason for a failure.

    .lock           locked by the process that executes the run (sage/storage/lock.py)
    result.json     exists once the run is finished
    failure.json    the reason for the last failure; removed when the run is started again

docs/reference/records.md lists all files.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sage import storage
from sage.storage.lock import Locked, locked

LOCK, RESULT, FAILURE, METRICS = ".lock", "result.json", "failure.json", "metrics.jsonl"

CLAIM_SECONDS = 5.0
"""Seconds to wait for the lock: a process that was just killed may hold it for a moment."""


class RunInUse(RuntimeError):
    """Raised if another process executes this run.

    Args:
        text: The message.
        is_fresh: Whether the run was to start with `--fresh`, which would remove the other process's result
            if it were tried again later.
    """

    def __init__(self, text: str, *, is_fresh: bool = False) -> None:
        super().__init__(text)
        self.is_fresh = is_fresh


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Create the folder if it is missing, and lock it, because two writers would corrupt it.

    Raises:
        RunInUse: Another process holds the lock; the message names the process.
        sage.storage.NotWritten: (an OSError) The file system refuses to create the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage.NotWritten(folder, error) from error
    try:
        with locked(folder / LOCK, wait=CLAIM_SECONDS):
            for draft in folder.glob(".*.partial"):  # left by a killed process
                with suppress(OSError):
                    storage.remove(draft)
            yield
    except Locked as error:
        raise RunInUse(f"{folder} is in use by {error}: wait until it ends or stop it, then rerun") from error


def clear(folder: Path) -> None:
    """Remove the files of a run except its lock, for `--fresh`; symlinks are removed, but not their targets.

    The result is removed first, then the checkpoints. If removing the rest fails, the run neither counts as
    finished nor resumes without its records.

    Raises:
        OSError: The file system refuses to remove a file.
    """
    first = [folder / RESULT, folder / "checkpoints"]
    others = [path for path in folder.iterdir() if not path.name.startswith(LOCK) and path not in first]
    for path in [*first, *others]:
        storage.remove(path)


def remove_failure(folder: Path) -> None:
    """Remove the reason for an earlier failure, when the run is started again."""
    storage.remove(folder / FAILURE)


def result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished run; None if the run is not finished or not started.

    Raises:
        sage.storage.Unreadable: (a ValueError) The result is damaged, or its records are missing, so that no
            report could show the run.
    """
    try:
        found = storage.read_json(folder / RESULT, storage.RESULT)
    except FileNotFoundError:
        return None
    if not storage.is_there(folder / METRICS):
        raise storage.Damaged(
            folder, f"has a {RESULT} but no {METRICS}, so no report can show it", "run it with --fresh"
        )
    return found


def write_failure(folder: Path, reason: Mapping[str, Any]) -> None:
    """Write the reason for a failure to the run folder; only the first rank that calls this is recorded."""
    with suppress(OSError):  # the disk may be the cause of the failure
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_first(folder / FAILURE, (storage.json_text(reason, indent=2) + "\n").encode())
