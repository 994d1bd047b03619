"""`sage sync`: uploads the runs of a folder to a URL, as far as they are not there yet."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sage.exit_status import FAILED, FATAL, message
from sage.output.units import printable
from sage.storage.lock import Locked
from sage.storage.remote.checksums import is_run
from sage.storage.remote.store import Store, StoreError
from sage.storage.remote.upload import Counts, RunUpload
from sage.storage.remote.url import checked_url, mark, marked_url, root


def main(local: Path | None, url: str | None, *, replace: bool) -> int:
    """Upload the runs of a folder, and print how many files and bytes were uploaded and are there.

    A file is uploaded if it is missing at the URL or differs there in length or checksum. Doing this again
    uploads nothing.

    Args:
        local: A folder of runs; None: every staging folder.
        url: Where to; None: the URL for which the folder is the staging folder.
        replace: Whether to replace earlier runs at the URL that could not be read when those here started.

    Returns:
        0 if all files are at the URL; 1 if some are not, but may be after a repetition; 2 if not even then.

    Raises:
        ValueError: There is no folder, no run or no URL, or the package of the store is missing.
    """
    if local is None:
        folders = list(_staging_folders(root()))
        if not folders:
            raise ValueError(
                f"no folder below {root()} has a URL; give a folder of runs and a URL: sage sync runs "
                "s3://bucket/runs"
            )
    elif not local.is_dir():
        raise ValueError(f"{local} is not a folder; give a folder of runs")
    else:
        folders = [local]
    statuses = []
    for folder in folders:
        target = checked_url(url) if url is not None else mark(folder)
        if target is None:
            raise ValueError(
                f"{folder} is not the folder of a URL; give one: sage sync {folder} s3://bucket/runs"
            )
        statuses.append(sync(folder, target, replace=replace))
    return max(statuses)


def sync(folder: Path, url: str, *, replace: bool) -> int:
    """Upload the runs of one folder; print what was done, and return the exit status as `main` does.

    Raises:
        ValueError: The folder has no run, or the package of the store is missing.
    """
    runs = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    runs = [path for path in runs if is_run(path)]
    if not runs:
        hint = "; it is a run itself, so give the folder that it is in" if is_run(folder) else ""
        raise ValueError(f"no runs are in {folder}{hint}")
    total, status, num_runs = Counts(), 0, 0
    try:
        store = Store(url)
        for run in runs:
            try:
                counts = RunUpload(run, run.name, replaces=replace)(store, verify=True)
            except Locked as owner:
                _warn(f"{printable(run)} is left out: it is being uploaded by {owner}")
                status = FAILED
                continue
            num_runs += 1
            for name, count in vars(counts).items():
                setattr(total, name, getattr(total, name) + count)
    except StoreError as error:
        left = len(runs) - num_runs
        _warn(f"{left} of {len(runs)} runs of {printable(folder)} are not uploaded: {message(error)}")
        status = FATAL if error.is_permanent else FAILED
    removed = f", {total.removed} superseded ones removed" if total.removed else ""
    runs_done = f"{num_runs} run{'s' if num_runs != 1 else ''}"
    print(
        f"{url}: {runs_done}, {total.files} files ({total.bytes} bytes), of which {total.uploaded} "
        f"({total.uploaded_bytes} bytes) were uploaded now{removed}"
    )
    return status


def _staging_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders below that have a URL."""
    for parent, names, _ in os.walk(folder):
        if is_run(Path(parent)):
            names.clear()
        elif marked_url(Path(parent)) is not None:
            names.clear()
            yield Path(parent)
        names[:] = sorted(name for name in names if not name.startswith("."))


def _warn(text: str) -> None:
    print(f"sage sync: {text}", file=sys.stderr, flush=True)
