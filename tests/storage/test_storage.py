"""Tests that files are written atomically, and that damaged, newer and unreadable files are distinguished."""

import errno
import io
import json
import math
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_user import plain_user

from sage import storage
from sage.storage import tensors, write

WHOLE = {"metric": "accuracy", "steps": 3, "final": {"accuracy": 0.5, "loss": None}}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An existing file."""
    path = tmp_path / "result.json"
    storage.write_json(path, WHOLE)
    return path


def is_untouched(path: Path) -> bool:
    return json.loads(path.read_text()) == WHOLE and os.listdir(path.parent) == [path.name]


# Atomic writes.


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    old: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(storage.NotWritten) as caught:
        storage.write_json(old, {**WHOLE, "steps": 4})
    monkeypatch.undo()
    assert is_untouched(old)
    message = str(caught.value)
    assert str(old) in message
    assert "No space left on device" in message
    assert "bytes are free" in message
    assert "\n" not in message


LIMITED = """
import os, resource, signal, sys
from pathlib import Path
from sage import storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
path, lines = folder / "file", folder / "lines"
storage.write_bytes(path, b"old")
lines.write_bytes(b"1\\n")
added = storage.Lines(lines, cut=True)
for limit in (0, 1, 7, 4096, 9999):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for do in (lambda: storage.write_bytes(path, b"x" * 10_000),
               lambda: storage.write_first(folder / "first", b"x" * 10_000),
               lambda: added.append(b"y" * 10_000 + b"\\n")):
        try:
            do()
        except storage.NotWritten as error:
            assert "File too large" in str(error), error
        else:
            raise AssertionError(limit)
    assert path.read_bytes() == b"old" and lines.read_bytes() == b"1\\n"
    assert sorted(os.listdir(folder)) == ["file", "lines"], os.listdir(folder)
"""
"""The kernel limits the size of a file, so that a write fails after any number of bytes."""


def test_a_write_that_fails_after_any_number_of_bytes_leaves_no_file(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr


class Full(io.BytesIO):
    """A file on a disk that is full after some bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, content: Any) -> int:
        if self.tell() + len(content) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


@pytest.mark.parametrize("room", [0, 1, 100, 1000, 5000])
def test_the_error_of_torch_on_a_full_disk_says_that_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    @contextmanager
    def writing(path: Path) -> Iterator[io.BytesIO]:
        yield Full(room)

    monkeypatch.setattr(tensors, "writing", writing)
    with pytest.raises(storage.NotWritten, match=r"file: cannot be written, No space left.* bytes are free"):
        storage.write_tensors(tmp_path / "file", {"a": torch.ones(2000)})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_writer_killed_at_any_moment_leaves_a_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    storage.write_json(path, {"number": -1, "again": -1})
    for attempt in range(12):
        child = os.fork()
        if not child:
            try:
                for number in range(100_000):
                    storage.write_json(path, {"number": number, "fill": "x" * 5000, "again": number})
            finally:
                os._exit(1)
        time.sleep(0.003 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        result = storage.read_json(path, storage.Kind(name="it", keys={"number": int, "again": int}))
        assert result["number"] == result["again"]


def test_a_failed_body_leaves_the_old_file(old: Path) -> None:
    def fail() -> None:
        with storage.writing(old) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert is_untouched(old)


def test_links_are_followed_and_devices_stay_devices(old: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(old)
    storage.write_json(link, {"steps": 4})
    assert link.is_symlink()
    assert json.loads(old.read_text()) == {"steps": 4}
    storage.write_json(Path(os.devnull), {"steps": 4})
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "absent" / "file")
    storage.write_json(dangling, {"steps": 5})
    assert json.loads(dangling.read_text()) == {"steps": 5}


def test_writing_to_a_fifo_or_a_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(storage.NotWritten, match=name):
            storage.write_text(tmp_path / name, "x")
        with pytest.raises(storage.NotWritten, match=name):
            storage.Lines(tmp_path / name, cut=True)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_private_files_are_private_under_any_umask_and_modes_are_kept(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        storage.write_text(tmp_path / "plain", "x")
        storage.write_text(tmp_path / "private", "x", private=True)
        storage.append_json_lines(tmp_path / "lines", [{}], private=True)
        storage.write_first(tmp_path / "first", b"x", private=True)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"plain": 0o666 & ~umask, "private": 0o600, "lines": 0o600, "first": 0o600}
    (tmp_path / "plain").chmod(0o640)
    storage.write_text(tmp_path / "plain", "y")
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o640


@pytest.mark.parametrize("links", [True, False])
def test_of_many_processes_that_write_first_only_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def none(*arguments: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", none)
    path = tmp_path / "failure.json"
    if links:
        with ThreadPoolExecutor(8) as ranks:
            firsts = list(ranks.map(lambda rank: storage.write_first(path, b"%d" % rank), range(32)))
    else:
        firsts = [storage.write_first(path, b"%d" % rank) for rank in range(4)]
    assert firsts.count(True) == 1
    assert path.read_text() == str(firsts.index(True))
    assert os.listdir(tmp_path) == ["failure.json"]


def test_an_incomplete_last_line_is_removed_or_terminated(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    for torn, size in ((b"1\n2\n{tor", 4), (b"{tor", 0), (b"", 0), (b"1\n" + b"x" * 200_000, 2)):
        path.write_bytes(torn)
        storage.Lines(path, cut=True).close()
        assert path.read_bytes() == torn[:size]
    path.write_bytes(b"1\n{tor")
    storage.append_json_lines(path, [{"a": math.nan}])
    assert path.read_bytes() == b'1\n{tor\n{"a": null}\n'


def test_appending_lines_to_a_removed_file_is_an_error(tmp_path: Path) -> None:
    lines = storage.Lines(tmp_path / "lines", cut=True)
    lines.append(b"1\n")
    lines.sync()
    (tmp_path / "lines").unlink()
    lines.append(b"2\n")
    with pytest.raises(storage.NotWritten, match="lines: cannot be written, it was removed"):
        lines.sync()
    lines.close()


def test_removing_a_link_does_not_remove_its_target(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "link").symlink_to("kept")
    for name in ("link", "absent"):
        storage.remove(tmp_path / name)
    assert (tmp_path / "kept" / "file").exists()
    assert not (tmp_path / "link").is_symlink()
    storage.remove(tmp_path / "kept")
    assert os.listdir(tmp_path) == []


# Damaged, newer and unreadable files, and paths that are no files.


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"metric": "acc', "not valid JSON: Unterminated string"),
        (b"[]", "it is a list, not an object"),
        (b"5", "it is a number, not an object"),
        (b"null", "it is null, not an object"),
        (b"{}", "needs the key 'metric'"),
        (b"\x00\x01", "not valid JSON"),
        (b"\xff\xfe{", "not UTF-8 text: byte 0 is 0xff"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested too deeply"),
        (b'{"steps": NaN}', "NaN is not a JSON number"),
        (b'{"steps": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a": "\\ud800"}', "unpaired surrogate"),
        (b'{"metric": 1, "steps": 3, "final": {}}', "'metric' is 1, not a text"),
        (b'{"metric": "a", "steps": true, "final": {"a": 1}}', "'steps' is true, not a whole number"),
        (b'{"metric": "a", "steps": 1e999, "final": {"a": 1}}', "'steps' is inf, not a whole number"),
        (b'{"metric": "a", "steps": 3, "final": {"a": "x"}}', "'x', not a number or null"),
        (b'{"metric": "a", "steps": 3, "final": {"b": 1}}', "lacks the metric 'a'"),
        (b'{"metric": "a", "steps": 3, "final": {"a": 1}, "seconds": 1e300}', "not a number or null"),
        (b'{"format": 0}', "its format is not a whole number"),
        (b'{"format": "1"}', "its format is not a whole number"),
    ],
)
def test_a_damaged_file_is_a_one_line_error_with_the_remedy(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(storage.Damaged) as caught:
        storage.read_json(path, storage.RESULT)
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged")
    assert reason in message
    assert message.endswith("or use --fresh")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300


def test_a_newer_file_is_not_reported_as_damaged_and_an_older_one_is_read(old: Path) -> None:
    kind = storage.Kind(name="it", keys={"steps": int}, version=2)
    assert storage.read_json(old, kind)["steps"] == 3
    storage.write_json(old, {"steps": 3}, kind)
    assert storage.read_json(old, kind) == {"format": 2, "steps": 3}
    storage.write_json(old, {"format": 3})
    with pytest.raises(storage.OtherVersion, match=r"newer version of SAGE: its format is 3, .* up to 2"):
        storage.read_json(old, kind)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"5\n", "a number, not an object"),
        (b"{}\n", "needs the key 'kind'"),
        (b"\n", "it is empty"),
        (b'{"kind":"step"}\n', "needs the key 'step'"),
        (b'{"kind":"stfp","step":1}\n', "'kind' is 'stfp', not 'step' or 'epoch' or 'event'"),
        (b'{"kind":"step","step":1,"epoch":0,"bytes":{"a":"b"}}\n', "'bytes', 'a', is 'b'"),
        (b'{"kind":"epoch","step":1,"epoch":1,"metrics":{},"train_loss":[]}\n', "'train_loss' is a list"),
    ],
)
def test_a_damaged_line_is_named_by_its_number(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = b'{"kind":"step","step":0,"epoch":0,"loss":null}\n'
    path.write_bytes(whole * 2 + line + whole)
    with pytest.raises(storage.Damaged, match=r"metrics\.jsonl, line 3 is damaged") as caught:
        list(storage.read_json_lines(path, storage.METRICS))
    assert reason in str(caught.value)
    path.write_bytes(whole + b'{"kind":"st')
    assert len(list(storage.read_json_lines(path, storage.METRICS))) == 1


def readers(path: Path) -> list[Callable[[], object]]:
    return [
        lambda: storage.read_json(path, storage.RESULT),
        lambda: list(storage.read_json_lines(path, storage.METRICS)),
        lambda: storage.read_toml(path),
        lambda: storage.read_tensors(path, "a checkpoint's file"),
        lambda: storage.read_tensors(path, "a trace", mmap=True),
        lambda: storage.read_private(path),
    ]


def test_a_path_that_is_not_a_file_is_an_error_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "fifo", tmp_path / "folder", Path("/dev/zero"), tmp_path / "file" / "below"):
        for read in readers(path):
            with pytest.raises(storage.Unreadable) as caught:
                read()
            assert str(path.parent) in str(caught.value)
            assert "\n" not in str(caught.value)
    (tmp_path / "dangling").symlink_to("absent")
    for read in readers(tmp_path / "dangling"):
        with pytest.raises(FileNotFoundError):
            read()
    assert not storage.is_there(tmp_path / "dangling")


def test_the_error_for_an_unreadable_file_names_its_owner() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "file").write_text("{}")
        (folder / "file").chmod(0)
        (folder / "closed").mkdir(mode=0o700)
        (folder / "closed" / "file").write_text("{}")
        with plain_user(folder):
            for path in (folder / "file", folder / "closed" / "file"):
                for read in readers(path):
                    with pytest.raises(storage.Unreadable, match="cannot be read: Permission denied"):
                        read()
            with pytest.raises(storage.Unreadable, match="Permission denied"):
                storage.is_there(folder / "closed" / "file")
            with pytest.raises(storage.NotWritten, match="closed/file: cannot be written, Permission denied"):
                storage.write_text(folder / "closed" / "file", "x")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}", None])
def test_a_file_without_tensors_is_reported_without_torchs_advice(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "shared.pt"
    path.write_bytes(content) if content is not None else torch.save([print], path)
    for mmap in (False, True):
        with pytest.raises(
            storage.Damaged, match="is damaged, or not a checkpoint's file; the remedy"
        ) as caught:
            storage.read_tensors(path, "a checkpoint's file", mmap=mmap, remedy="the remedy")
        assert "weights_only" not in str(caught.value)
    storage.write_tensors(path, {"a": torch.ones(2)})
    assert storage.read_tensors(path, "it")["a"].tolist() == [1, 1]


# Pickles.


def test_a_pickle_that_others_could_have_written_is_refused(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    path = runs / ".jobs" / "cell.pkl"
    path.parent.mkdir(parents=True)
    for folder in (runs, path.parent):
        folder.chmod(0o755)
    storage.write_bytes(path, b"x", private=True)
    assert storage.read_private(path, within=runs) == b"x"
    for each in (path, path.parent, runs):
        mode = stat.S_IMODE(each.stat().st_mode)
        each.chmod(0o777)
        with pytest.raises(storage.Unreadable, match=rf"everybody can write to it.* run `chmod go-w {each}`"):
            storage.check_private(path, within=runs)
        each.chmod(mode)
    storage.check_private(path, within=runs)
    path.parent.chmod(0o1777)  # like /tmp: other users cannot replace its files
    storage.check_private(path, within=runs)
    with pytest.raises(FileNotFoundError):
        storage.check_private(path.with_name("absent"), within=runs)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_pickle_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs" / ".jobs" / "cell.pkl"
    path.parent.mkdir(parents=True)
    storage.write_bytes(path, b"x", private=True)
    link = path.with_name("link.pkl")
    link.symlink_to(path)
    storage.check_private(link, within=tmp_path / "runs")
    for each in (path, path.parent, tmp_path / "runs"):
        os.chown(each, 65534, -1)
        for name in (path, link):
            with pytest.raises(storage.Unreadable, match="it belongs to "):
                storage.read_private(name, within=tmp_path / "runs")
        os.chown(each, 0, -1)
    os.chown(link, 65534, -1, follow_symlinks=False)
    with pytest.raises(storage.Unreadable, match="it belongs to "):
        storage.check_private(link, within=tmp_path / "runs")


def test_names_of_any_length_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "ü" * 127):
        write.write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"
