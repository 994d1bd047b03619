"""Tests that one process at a time holds a lock, with and without flock, also after an owner's death."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzz import examples

from sage.storage import lock
from sage.storage.lock import Locked, locked

HELD, FREE, FAILED = 3, 0, 1
"""The result of a child, as its exit status."""


@pytest.fixture(params=["flock", "no flock"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With flock, and without."""
    if request.param == "no flock":
        without_flock(monkeypatch)
    return str(request.param)


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a file system without flock."""
    without_flock(monkeypatch)


def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def child(do: Callable[[], int]) -> int:
    """Run a function in its own process, which ends without cleaning up, as if killed."""
    number = os.fork()
    if number:
        return number
    try:
        os._exit(do())
    finally:
        os._exit(FAILED)


def status(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def write_owner_file(path: Path, *, age: float, **who: object) -> None:
    """Write the owner's file of another host, last touched some seconds ago."""
    path.touch()
    own = path.with_name(f"{path.name}.owner-7")
    own.write_text(json.dumps({"host": "node9", "process": 41, "user": 0, "processes": "other", **who}))
    touched = time.time() - age
    os.utime(own, (touched, touched))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """The path of the lock."""
    yield tmp_path / ".lock"
    left = {name for name in os.listdir(tmp_path) if not name.startswith(".lock")}
    assert not left, left
    owners = [name for name in os.listdir(tmp_path) if ".owner-" in name]
    assert len(owners) <= 1, owners


def test_a_second_process_is_refused_with_the_owners_name_and_gets_the_lock_afterwards(
    either: str, path: Path
) -> None:
    def try_it() -> int:
        try:
            with locked(path):
                return FREE
        except Locked as error:
            return HELD if f"process {os.getppid()} on {socket.gethostname()}" in str(error) else FAILED

    with locked(path):
        assert status(child(try_it)) == HELD
    assert status(child(try_it)) == FREE
    with locked(path), pytest.raises(Locked), locked(path, wait=0.2):
        pass
    with locked(path, wait=5):
        pass


def test_a_waiting_process_gets_the_lock_when_it_is_released(either: str, path: Path) -> None:
    def hold() -> int:
        with locked(path):
            (path.parent / ".lock-is-held").touch()
            time.sleep(0.5)
        return FREE

    holder = child(hold)
    while not (path.parent / ".lock-is-held").exists():
        time.sleep(0.01)
    with locked(path, wait=30):
        pass
    assert status(holder) == FREE


def test_the_lock_of_a_killed_process_goes_to_the_next(either: str, path: Path) -> None:
    def die() -> int:
        locked(path).__enter__()
        os._exit(FREE)

    for _ in range(3):
        assert status(child(die)) == FREE
        with locked(path):
            pass


def test_only_one_of_many_processes_has_the_lock_at_a_time(
    either: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "POLL", 0.001)
    inside, count = path.with_name(".lock-inside"), path.with_name(".lock-count")
    count.write_text("0")

    def work() -> int:
        for turn in range(12):
            with locked(path, wait=60):
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another process has the lock
                count.write_text(str(int(count.read_text()) + 1))
                inside.unlink()
                if turn == 11:
                    os._exit(FREE)  # ends while it has the lock
        return FAILED

    assert [status(number) for number in [child(work) for _ in range(5)]] == [FREE] * 5
    assert count.read_text() == "60"


@pytest.mark.usefixtures("no_flock")
def test_of_many_processes_that_take_over_a_lock_only_one_gets_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "POLL", 0.001)
    for turn in range(examples(5)):
        for own in path.parent.glob(".lock*"):
            own.unlink()
        write_owner_file(path, age=1000)
        start = time.monotonic() + 0.03
        inside = path.with_name(".lock-inside")

        def take(inside: Path = inside, start: float = start) -> int:
            while time.monotonic() < start:
                pass
            try:
                with locked(path):
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                    time.sleep(0.03)
                    inside.unlink()
                    return FREE
            except Locked:
                return HELD

        ends = [status(number) for number in [child(take) for _ in range(5)]]
        assert FAILED not in ends, turn
        assert FREE in ends, turn


@pytest.mark.usefixtures("no_flock")
def test_an_owner_on_another_host_is_named_while_active_and_replaced_when_inactive(path: Path) -> None:
    write_owner_file(path, age=1)
    with pytest.raises(Locked, match=r"process 41 on node9 \(user root\), seen 1 s ago"), locked(path):
        pass
    write_owner_file(path, age=lock.STALE + 1)
    with locked(path):
        assert [own.name for own in path.parent.glob("*owner*")] == [".lock.owner-8"]


@pytest.mark.usefixtures("no_flock")
def test_an_owner_that_may_have_ended_is_waited_for_until_that_is_certain(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.1)
    monkeypatch.setattr(lock, "STALE", 0.6)
    write_owner_file(path, age=0.3)  # three touches are missing
    start = time.monotonic()
    with locked(path, wait=0):
        assert time.monotonic() - start > 0.25


@pytest.mark.usefixtures("no_flock")
def test_an_owner_that_runs_for_long_keeps_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lock, "STALE", 0.5)
    with locked(path):
        time.sleep(1.0)
        with pytest.raises(Locked), locked(path):
            pass


@pytest.mark.usefixtures("no_flock")
def test_an_equal_process_id_in_another_container_does_not_count_as_ended(path: Path) -> None:
    write_owner_file(path, age=1, host=socket.gethostname(), process=os.getpid(), started="12")
    with pytest.raises(Locked), locked(path):
        pass
    write_owner_file(path, age=1, processes=lock._me()["processes"], process=os.getpid(), started="12")
    with locked(path):
        pass


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"process": "x"}', b"\xff", b'{"process": -1}'])
def test_an_owners_file_of_any_content_counts_for_a_while(path: Path, content: bytes) -> None:
    own = path.with_name(".lock.owner-1")
    own.write_bytes(content)
    with pytest.raises(Locked, match="another process"), locked(path):
        pass
    os.utime(own, (0, 0))
    with locked(path):
        pass


@pytest.mark.usefixtures("no_flock")
def test_a_full_disk_leaves_no_owners_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"), locked(path):
            pass
    with locked(path):
        pass


def test_a_file_that_was_replaced_in_the_meantime_is_locked_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, replaced = fcntl.flock, list[Path]()

    def replace_first(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        if not replaced:
            replaced.append(path)
            path.unlink()
            path.touch()

    monkeypatch.setattr(fcntl, "flock", replace_first)
    with locked(path), path.open() as other, pytest.raises(BlockingIOError):
        flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_forked_process_does_not_keep_the_lock(path: Path) -> None:
    with locked(path):
        reading, writing = os.pipe()

        def stay() -> int:
            os.close(writing)
            os.read(reading, 1)
            return FREE

        other = child(stay)
    with locked(path):
        pass
    os.close(writing)
    assert status(other) == FREE
    os.close(reading)


def test_a_fifo_in_place_of_the_file_does_not_hang(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"), locked(path):
        pass
