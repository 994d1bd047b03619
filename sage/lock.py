"""Locks a file against other processes, also on file systems without flock.

Where flock works it decides. Where it does not, as on many shared file systems, a second file is created
exclusively: `NAME.owner`, which names the owner's host, process and user. Its owner touches it every
`BEAT` seconds. Another process takes it over where the owner has died on this host, or has not touched it for
`STALE` seconds.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BEAT, STALE = 5.0, 60.0
"""Seconds between two touches of an owner's file, and after which one untouched is taken over."""

POLL = 0.1

NO_FLOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EREMOTEIO}
"""What flock says on a file system that has none."""


class Locked(RuntimeError):
    """Another process holds the lock; the message says which, as far as is known."""


@contextmanager
def locked(path: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file, which is created where it is missing; its folder must exist.

    Args:
        wait: Seconds to wait for another process to let go.

    Raises:
        Locked: where another process still holds it then.
        OSError: where the file cannot be created.
    """
    with path.open("a") as file:
        if _flock(file.fileno(), path, wait):
            _note_owner(path)
            yield  # closing the file lets go
        else:
            with _owned(path.with_name(f"{path.name}.owner"), wait):
                yield


def _flock(descriptor: int, path: Path, wait: float) -> bool:
    """Take the lock; False where the file system has no flock."""
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Locked(_held_by(_read(path))) from None
        except OSError as error:
            if error.errno in NO_FLOCK:
                return False
            raise
        time.sleep(POLL)


def _note_owner(path: Path) -> None:
    """Write into the locked file who holds it, for messages alone."""
    with suppress(OSError):
        path.write_text(json.dumps(_me("")))


@contextmanager
def _owned(path: Path, wait: float) -> Iterator[None]:
    """Hold a file that was created exclusively, and touch it meanwhile."""
    token = secrets.token_hex(8)
    _create(path, token, wait)
    over = threading.Event()
    beat = threading.Thread(target=_touch, args=(path, over), daemon=True, name="sage lock")
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        if _read(path).get("token") == token:
            path.unlink(missing_ok=True)


def _create(path: Path, token: str, wait: float) -> None:
    """Create the file, once nobody holds it."""
    start = time.monotonic()
    first_touch: float | None = None
    while True:
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with os.fdopen(descriptor, "w") as file:
                json.dump(_me(token), file)
                file.flush()
                os.fsync(descriptor)
            return
        owner = _read(path)
        touch = _touched(path)
        if touch is not None:
            first_touch = touch if first_touch is None else first_touch
            age = _now_of(path) - touch
            if _is_dead(owner) or age > STALE:
                _take_away(path, owner.get("token"))
                continue
            # An owner that is alive has touched it since; a dead one has not: wait until it is stale.
            silent = touch == first_touch and age > 2 * BEAT
            if time.monotonic() - start >= wait and not silent:
                raise Locked(_held_by(owner))
        time.sleep(POLL)


def _take_away(path: Path, token: Any) -> None:
    """Remove a stale file, unless another process has taken it over meanwhile."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside).get("token") != token:
        with suppress(OSError):
            os.link(aside, path)  # the new owner's: put it back
    aside.unlink(missing_ok=True)


def _touch(path: Path, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


def _touched(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def _now_of(path: Path) -> float:
    """The time as the file system of this path has it: a server's clock may differ from this host's."""
    probe = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _me(token: str) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "user": os.getuid(),
        "time": time.time(),
        "token": token,
    }


def _started(process: int) -> str:
    """When a process of this host began, in clock ticks since the host did; '' where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this host that is no more."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("process"), int):
        return False
    return _started(owner["process"]) != owner.get("started")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _held_by(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return f"process {owner.get('process')} on {owner.get('host')} (user {owner.get('user')})"
