"""Uploads the files of one run folder; the run at the URL can be read and resumed at any moment.

The order is: records, configuration and TensorBoard files, then `result.json`, then checkpoints, each before
its index, and last `checksums.json`. A file that has grown or changed is uploaded again as a whole. A store
such as S3 shows a file only once all of it is there.
"""

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sage.storage.lock import locked
from sage.storage.remote import checksums
from sage.storage.remote.checksums import Sum
from sage.storage.remote.store import Store, StoreError
from sage.storage.write import remove, write_bytes

LOCK = ".lock-upload"
"""The file of a run folder that is locked by the process that uploads it; `--fresh` keeps it."""

UNREAD = ".unread"
"""The file of a run folder that says that the run started without having read what is at the URL."""

IN_MEMORY = 2**25
"""Bytes up to which a file is read into memory before it is uploaded."""


@dataclass
class Counts:
    """What an upload has done, in files and bytes."""

    files: int = 0
    """Files of the run on this machine."""
    bytes: int = 0
    uploaded: int = 0
    uploaded_bytes: int = 0
    removed: int = 0
    """Files removed at the URL: superseded checkpoints, and what an earlier start of the run had left."""


@dataclass
class RunUpload:
    """The upload of one run folder; it remembers what is at the URL, until a call fails."""

    folder: Path
    """The run folder on this machine."""
    name: str
    """Its path below the URL of the store."""
    replaces: bool = False
    """Whether to replace an earlier run at the URL that could not be read when this one started."""
    _there: dict[str, Sum] | None = None
    _sums: dict[str, tuple[tuple[int, int], Sum]] = field(default_factory=dict)
    """The sum of each file on this machine, and the length and time of change for which it holds."""

    def __call__(
        self, store: Store, *, verify: bool, is_stopped: Callable[[], bool] = lambda: False
    ) -> Counts:
        """Upload what is missing at the URL, or differs there.

        Args:
            verify: Whether to list the files at the URL, even if what is there is known.
            is_stopped: Asked before each file; if true, the others are left out.

        Raises:
            StoreError: (an OSError) The store does not answer, or refuses.
            sage.storage.lock.Locked: Another process is uploading this run.
        """
        with locked(self.folder / LOCK):
            return self._upload_all(store, verify=verify, is_stopped=is_stopped)

    def _upload_all(self, store: Store, *, verify: bool, is_stopped: Callable[[], bool]) -> Counts:
        counts, replaced = Counts(), False
        there, self._there = self._there, None  # unknown if this fails: an answer may have been lost
        if verify or there is None:
            there = checksums.read(store, self.name)
            replaced = self._replaces_unread(store, there)
        here = checksums.files(self.folder)
        left = [name for name in here if is_stopped() or not self._upload(store, name, there, counts)]
        if not left:
            for name in checksums.superseded(here, there, all_others=replaced):
                store.remove(f"{self.name}/{name}")
                del there[name]
                counts.removed += 1
            if replaced:
                remove(self.folder / UNREAD)
        if counts.uploaded or counts.removed:
            checksums.write(store, self.name, there)
        self._there = there
        return counts

    def _replaces_unread(self, store: Store, there: dict[str, Sum]) -> bool:
        """Whether all of a run at the URL is replaced that was not read when this one started.

        Raises:
            StoreError: (an OSError) It has a checkpoint or a result, and is not to be replaced.
        """
        if not (self.folder / UNREAD).exists():
            return False
        has_progress = any(name == "result.json" or name.endswith("/index.json") for name in there)
        if has_progress and not self.replaces:
            raise StoreError(
                errno.EACCES,
                "an earlier run is there, which could not be read when this one started; only `sage sync "
                "--replace` replaces it",
                f"{store.url}/{self.name}",
            )
        if not has_progress:
            remove(self.folder / UNREAD)  # before anything of this run is there
        return True

    def _upload(self, store: Store, name: str, there: dict[str, Sum], counts: Counts) -> bool:
        """Upload a file unless it is equal to the one at the URL; return False if the run has removed it."""
        path, target = self.folder / name, f"{self.name}/{name}"
        try:
            file = open(path, "rb", opener=_no_link)  # noqa: SIM115
        except FileNotFoundError:
            return False
        with file:
            status = os.fstat(file.fileno())
            key = status.st_size, status.st_mtime_ns
            known_key, found = self._sums.get(name, ((-1, -1), Sum(-1, "")))
            if key != known_key or found != there.get(name):
                content = file.read(status.st_size) if status.st_size <= IN_MEMORY else b""
                if status.st_size <= IN_MEMORY:
                    found = Sum(len(content), hashlib.sha256(content).hexdigest())
                else:
                    found = checksums.sum_of(file, status.st_size)
                if found != there.get(name):
                    if found.bytes <= IN_MEMORY:
                        store.write(target, content)
                    else:
                        # By its descriptor, because the run may remove the file meanwhile.
                        store.write(target, Path(f"/proc/self/fd/{file.fileno()}"))
                    counts.uploaded += 1
                    counts.uploaded_bytes += found.bytes
                there[name] = found
                self._sums[name] = key, found
        counts.files += 1
        counts.bytes += found.bytes
        return True


def mark_unread(folder: Path) -> None:
    """Note that a run starts without having read what is at its URL."""
    write_bytes(folder / UNREAD, b"")


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
