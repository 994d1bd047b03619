"""Locks a file between processes, also on file systems without flock.

If flock works, it is used. If it does not, as on many shared file systems, owner files next to the locked
file implement the lock: `NAME.owner-1`, `NAME.owner-2`, and so on. Each is created exclusively (O_EXCL) by
the process that it names. The owner file with the highest number holds the lock, and its process touches it
every `HEARTBEAT` seconds. Another process may create the file with the next number only if the owner has
died on this host, or has not touched its file for `STALE` seconds. It removes the older files once it holds
the lock. Numbers never decrease, so if two processes take over at the same moment, one of them fails to
create its file or finds a higher number.

An owner file remains after the lock is released, with a modification time of 1970. A process that was
suspended for longer than `STALE` seconds may have lost such a lock without detecting it.
"""

import errno
import fcntl
import json
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sage.output.text import clean_text
from sage.storage.errors import user_name

HEARTBEAT, STALE = 5.0, 60.0
"""Seconds between two touches of an owner file, and seconds without a touch after which it is taken over."""

POLL = 0.1

NO_FLOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EREMOTEIO}
"""Errors of flock on a file system that does not support it."""


class Locked(RuntimeError):
    """Raised if another process holds the lock; the message names the process if it is known."""


@contextmanager
def locked(path: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file, which is created if it is missing; its folder must exist.

    Args:
        wait: Seconds to wait for another process to release the lock. Without flock, the wait may last up to
            `STALE` seconds if the owner has stopped touching its file, as it may have died.

    Raises:
        Locked: Another process still holds the lock after the wait.
        OSError: The file cannot be created, or is not a regular file.
    """
    deadline = time.monotonic() + wait
    while True:
        descriptor = _open(path)
        try:
            if not _flock(descriptor, path, deadline):
                break
            if _is_still(path, descriptor):
                _note_owner(descriptor)
                try:
                    yield
                finally:
                    # Closing is not sufficient if a forked process has inherited the descriptor.
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                return
        finally:
            os.close(descriptor)
    with _owned(path, deadline):
        yield


# With flock.


def _open(path: Path) -> int:
    # Non-blocking, so that opening a FIFO does not hang.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file, so it cannot be locked: remove it", str(path))
    return descriptor


def _flock(descriptor: int, path: Path, deadline: float) -> bool:
    """Acquire the lock with flock; return False if the file system does not support it."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Locked(_describe(_read(path))) from None
        except OSError as error:
            if error.errno in NO_FLOCK:
                return False
            raise
        time.sleep(POLL)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the path still refers to the locked file, and not to one created since."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _note_owner(descriptor: int) -> None:
    """Write the owner into the locked file; it is used for messages only."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_me()).encode(), 0)


# Without flock.


@dataclass(frozen=True)
class _Owner:
    """An owner file when it was read: its owner, and the seconds since it was last touched."""

    number: int
    who: dict[str, Any]
    age: float

    @property
    def may_be_replaced(self) -> bool:
        return self.age > STALE or _is_dead(self.who)


@contextmanager
def _owned(path: Path, deadline: float) -> Iterator[None]:
    """Hold the lock with an owner file, and touch the file periodically."""
    own = _take(path, deadline)
    over = threading.Event()
    beat = threading.Thread(target=_touch, args=(own, over), daemon=True, name="sage lock")
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        with suppress(FileNotFoundError):
            os.utime(own, (0, 0))


def _take(path: Path, deadline: float) -> Path:
    """Wait until no process holds the lock, then create the owner file with the next number."""
    while True:
        owner = _newest(path)
        if owner is None or owner.may_be_replaced:
            number = 1 if owner is None else owner.number + 1
            own = _file(path, number)
            # If another process was faster, its file holds the lock: check again.
            if _create(own) and not _withdrawn(path, number):
                return own
            continue
        # A live owner has touched its file within this time; otherwise it may be dead, so the wait continues.
        if time.monotonic() >= deadline and owner.age < 2 * HEARTBEAT:
            raise Locked(f"{_describe(owner.who)}, seen {max(0, owner.age):.0f} s ago")
        time.sleep(POLL if owner.age < 2 * HEARTBEAT else 1.0)


def _newest(path: Path) -> _Owner | None:
    """Return the owner file with the highest number; None if there is none."""
    while numbers := _numbers(path):
        own = _file(path, numbers[-1])
        with suppress(FileNotFoundError):  # it was replaced by a higher number in the meantime
            return _Owner(numbers[-1], _read(own), _now_of(path) - own.stat().st_mtime)
    return None


def _create(own: Path) -> bool:
    """Create an owner file for this process; return False if the number is already taken."""
    try:
        descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(_me(), file)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        own.unlink(missing_ok=True)  # for example if the disk is full: an incomplete file would hold the lock
        raise
    return True


def _withdrawn(path: Path, number: int) -> bool:
    """Remove older owner files; if a higher number exists, remove this one instead and return True."""
    numbers = _numbers(path)
    if numbers[-1:] != [number]:
        _file(path, number).unlink(missing_ok=True)
        return True
    for older in numbers[:-1]:
        _file(path, older).unlink(missing_ok=True)
    return False


def _touch(own: Path, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(own)


def _numbers(path: Path) -> list[int]:
    pattern = re.compile(re.escape(path.name) + r"\.owner-(\d{1,18})")
    return sorted(int(match[1]) for name in os.listdir(path.parent) if (match := pattern.fullmatch(name)))


def _file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.owner-{number}")


def _now_of(path: Path) -> float:
    """Return the current time of the file system, whose clock may differ from that of this host."""
    probe = path.with_name(f".{path.name[:40]}.{os.urandom(8).hex()}.partial")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


# Owners.


def _me() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "processes": _processes(),
        "process": os.getpid(),
        "started": started(os.getpid()),
        "user": os.getuid(),
        "time": time.time(),
    }


@cache
def _processes() -> str:
    """Return an identifier of the process namespace: the boot ID of the host and the PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(process: int) -> str:
    """Return the start time of a process on this host, in clock ticks since boot; '' if it does not exist.

    A zombie process counts as not existing.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether the owner was in the process namespace of this process and has ended."""
    if not _processes() or owner.get("processes") != _processes():
        return False
    number = owner.get("process")
    return type(number) is int and number > 0 and started(number) != owner.get("started")


def _read(path: Path) -> dict[str, Any]:
    """Read the content of a lock file or owner file; empty if its owner has not written it yet."""
    try:
        content = json.loads(path.read_bytes()[:4096])
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _describe(owner: dict[str, Any]) -> str:
    number, host, user = (owner.get(name) for name in ("process", "host", "user"))
    if type(number) is not int or type(user) is not int or not 0 <= user < 2**32:
        return "another process"
    return clean_text(f"process {number} on {host} (user {user_name(user)})", 200)
