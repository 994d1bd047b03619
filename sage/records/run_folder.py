"""A run's folder: who may write to it, whether its run is finished, and why it ended.

    .lock           locked by the process that runs it (sage/storage/lock.py)
    result.json     there once the run is finished
    failure.json    why it ended otherwise, until it is run again

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
"""How long a run waits for its folder: another one that was just killed needs a moment to be gone."""


class Taken(RuntimeError):
    """Another process runs this run."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder where it is missing, and keep other processes off it: two writers would spoil it.

    Raises:
        Taken: where another process has it; the message names it.
        sage.storage.NotWritten: an OSError, where the file system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage.NotWritten(folder, error) from error
    try:
        with locked(folder / LOCK, wait=CLAIM_SECONDS):
            for draft in folder.glob(".*.partial"):  # which a killed process has left
                with suppress(OSError):
                    storage.remove(draft)
            yield
    except Locked as error:
        raise Taken(f"{folder} is being run by {error}: let it end, or end it, and run again") from error


def clear(folder: Path) -> None:
    """Remove what a run has left, for `--fresh`; of links the links alone, not what they lead to.

    The result goes first and the checkpoints next: where the rest cannot be removed, the run neither counts
    as finished nor goes on without its records.

    Raises:
        OSError: where the file system refuses.
    """
    first = [folder / RESULT, folder / "checkpoints"]
    others = [path for path in folder.iterdir() if not path.name.startswith(LOCK) and path not in first]
    for path in [*first, *others]:
        storage.remove(path)


def forget_failure(folder: Path) -> None:
    """Remove the reason why the run ended before, as it is run again."""
    storage.remove(folder / FAILURE)


def result(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run; None of one that is not finished, or not begun.

    Raises:
        sage.storage.Unreadable: a ValueError in one line, where the result is damaged, or where its records
            are gone, so that no report could show the run.
    """
    try:
        found = storage.read_json(folder / RESULT, storage.RESULT)
    except FileNotFoundError:
        return None
    if not storage.is_there(folder / METRICS):
        raise storage.Damaged(
            folder, f"has a {RESULT} but no {METRICS}, so that no report can show it", "run it with --fresh"
        )
    return found


def leave_failure(folder: Path, word: Mapping[str, Any]) -> None:
    """Say in the run's folder why it ended; only the first rank to say it is recorded."""
    with suppress(OSError):  # the disk may be what failed
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_first(folder / FAILURE, (storage.json_text(word, indent=2) + "\n").encode())
