"""Tests of folders of runs at URLs, in fsspec's store in memory: names, uploads, copies, and refusals."""

import json
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_runs import pretend

from sage.cli.main import main
from sage.records import upload as background
from sage.records.upload import Upload
from sage.storage.remote import upload as upload_of_one
from sage.storage.remote.checksums import files
from sage.storage.remote.copies import fetch
from sage.storage.remote.store import Store, StoreError, is_inside
from sage.storage.remote.upload import LOCK, RunUpload, mark_unread
from sage.storage.remote.url import checked_url, copied, mark, marked_url, root, staged

URL = "memory://bucket/runs"


class Memory:
    """fsspec's store in memory."""

    def __init__(self) -> None:
        self._files = fsspec.filesystem("memory")
        self.clear()

    def clear(self) -> None:
        self._files.store.clear()

    def put(self, name: str, content: bytes) -> None:
        self._files.pipe_file(f"/bucket/runs/{name}", content)


@pytest.fixture
def memory() -> Iterator[Memory]:
    """An empty store in memory."""
    store = Memory()
    yield store
    store.clear()


def uploaded(folder: Path) -> list[str]:
    """Upload a run folder as a new process does; return the names of what is at the URL."""
    RunUpload(folder, "run")(Store(URL), verify=True)
    return sorted(name.removeprefix("run/") for name in Store(URL).sizes("run"))


def checkpoint(folder: Path, step: int) -> None:
    """Write the files of a made-up checkpoint."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    for name in ("shared.pt", "rank-0000.pt", "index.json"):
        (path / name).write_text(f"{name} of {step}")


names = st.text("aü%_.- ", min_size=1, max_size=4)


@settings(max_examples=examples(25))
@given(st.lists(names, min_size=1, max_size=3), st.lists(names, min_size=1, max_size=3))
def test_each_url_has_a_staging_folder_of_its_own_below_the_root(one: list[str], other: list[str]) -> None:
    folders = []
    for parts in (one, other):
        url = "s3://bucket/" + "/".join(parts)
        if not {".", ".."}.isdisjoint(parts):
            with pytest.raises(ValueError, match=r"\.\."):
                staged(url)
            return
        folders.append(staged(url))
        assert folders[-1].parts[: len(root().parts)] == root().parts
        assert ".." not in folders[-1].parts
        assert staged(url) != copied(url)
    assert (folders[0] == folders[1]) == (one == other)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://bucket//runs", "empty part"),
        ("s3://bucket/../other", "empty part"),
        ("sftp://me:secret@host/runs", "has a password"),
        ("s3://bucket/runs?version=1", r"has a \?"),
    ],
)
def test_a_url_that_cannot_hold_runs_is_refused(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refusal:
        checked_url(url)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("url", ["adl://bucket/runs", "nosuch://bucket/runs"])
def test_a_store_without_its_package_is_refused_before_training(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("adlfs") is not None:
        pytest.skip("adlfs is installed")
    monkeypatch.chdir(tmp_path)
    for argv in (["run", "digits-ff", "--runs", url], ["report", url]):
        assert main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert ("pip install 'adlfs'" in line) == url.startswith("adl"), line
        assert url.partition(":")[0] in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_marked_with_its_url_once_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGE_STAGING_DIR", str(tmp_path))
    folder = staged("s3://bucket/marked/")
    assert folder == tmp_path / "s3" / "bucket" / "marked"
    assert not folder.exists()
    assert mark(folder) == "s3://bucket/marked"
    assert marked_url(folder) == "s3://bucket/marked"
    assert mark(tmp_path) is None


def test_an_upload_is_repeatable_and_has_neither_locks_nor_drafts_nor_links(
    tmp_path: Path, memory: Memory
) -> None:
    folder = pretend(tmp_path)
    checkpoint(folder, 1)
    (folder / "checkpoints" / ".tmp-step-00000002").mkdir()
    (folder / "checkpoints" / ".tmp-step-00000002" / "shared.pt").touch()
    (folder / "link").symlink_to("/etc/passwd")
    (folder / ".result.json.0.partial").touch()
    assert uploaded(folder) == sorted([*files(folder), "checksums.json"])
    assert not any("tmp" in name or name in ("link", LOCK) for name in uploaded(folder))
    again = RunUpload(folder, "run")(Store(URL), verify=True)
    assert (again.uploaded, again.removed, again.files) == (0, 0, len(files(folder)))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("{}\n")
    assert RunUpload(folder, "run")(Store(URL), verify=True).uploaded == 1
    content = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(content.replace(b"digits", b"DIGITS"))  # of the same length
    assert RunUpload(folder, "run")(Store(URL), verify=True).uploaded == 1
    memory.put("run/config.json", b"{}")  # of another length
    assert RunUpload(folder, "run")(Store(URL), verify=True).uploaded == 1


def test_only_what_the_run_itself_has_replaced_is_removed_at_the_url(tmp_path: Path, memory: Memory) -> None:
    folder = pretend(tmp_path)
    for step in (1, 2):
        checkpoint(folder, step)
    uploaded(folder)
    for name in ("step-00000001", "step-00000002"):  # by the user
        for path in (folder / "checkpoints" / name).iterdir():
            path.unlink()
    (folder / "manifest.json").unlink()
    assert {"manifest.json", "result.json", "checkpoints/step-00000001/index.json"} < set(uploaded(folder))
    checkpoint(folder, 3)
    (folder / "result.json").unlink()  # the run was started again
    there = uploaded(folder)
    assert [name for name in there if name.endswith("index.json")] == ["checkpoints/step-00000003/index.json"]
    assert "result.json" not in there
    assert "manifest.json" in there


def test_a_run_that_could_not_be_read_at_the_start_is_not_replaced_unless_asked(
    tmp_path: Path, memory: Memory
) -> None:
    memory.put("run/checkpoints/step-00000400/index.json", b"{}")
    memory.put("run/metrics.jsonl", b"of 400 steps")
    memory.put("run/tensorboard/events.of-400-steps", b"")
    folder = pretend(tmp_path)
    checkpoint(folder, 1)
    mark_unread(folder)
    for _ in range(2):
        with pytest.raises(StoreError, match="only `sage sync --replace` replaces it") as error:
            RunUpload(folder, "run")(Store(URL), verify=False)
        assert error.value.is_permanent
        assert Store(URL).read("run/metrics.jsonl") == b"of 400 steps"
    RunUpload(folder, "run", replaces=True)(Store(URL), verify=True)
    assert Store(URL).read("run/metrics.jsonl") == (folder / "metrics.jsonl").read_bytes()
    assert uploaded(folder) == sorted(
        [*files(folder), "checksums.json"]
    )  # nothing of the earlier run is left


def test_where_no_checkpoint_and_no_result_is_there_a_run_that_could_not_read_it_is_uploaded(
    tmp_path: Path, memory: Memory
) -> None:
    memory.put("run/metrics.jsonl", b"of no checkpoint")
    folder = pretend(tmp_path)
    checkpoint(folder, 1)
    mark_unread(folder)
    assert "checkpoints/step-00000001/index.json" in uploaded(folder)
    checkpoint(folder, 2)
    assert "checkpoints/step-00000002/index.json" in uploaded(folder)


def test_a_checkpoint_is_complete_at_the_url_before_its_index_is_there(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pretend(tmp_path)
    checkpoint(folder, 1)
    order = []
    write = Store.write

    def noted(self: Store, name: str, content: bytes | Path) -> None:
        order.append(name)
        write(self, name, content)

    monkeypatch.setattr(Store, "write", noted)
    uploaded(folder)
    assert order[-2:] == ["run/checkpoints/step-00000001/index.json", "run/checksums.json"]
    assert order.index("run/metrics.jsonl") < order.index("run/result.json")


def test_a_large_file_that_the_run_removes_meanwhile_is_uploaded_as_a_whole(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pretend(tmp_path)
    checkpoint(folder, 1)
    large = folder / "checkpoints" / "step-00000001" / "shared.pt"
    write = Store.write

    def after_removal(self: Store, name: str, content: bytes | Path) -> None:
        if name.endswith(large.name):
            assert isinstance(content, Path)
            large.unlink()
        write(self, name, content)

    monkeypatch.setattr(upload_of_one, "IN_MEMORY", 8)
    monkeypatch.setattr(Store, "write", after_removal)
    assert "checkpoints/step-00000001/shared.pt" in uploaded(folder)
    assert Store(URL).read("run/checkpoints/step-00000001/shared.pt") == b"shared.pt of 1"


def test_a_store_that_fails_never_ends_a_run_and_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pretend(tmp_path)
    (tmp_path / ".remote.json").write_text(json.dumps({"url": URL}))
    for name, value in {"FIRST": 0.0, "LONGEST": 0.05, "FAILURES": 1, "AT_END": {0: 0.5}}.items():
        monkeypatch.setattr(background, name, value)

    def fails(self: Store, name: str, content: object) -> None:
        raise StoreError(110, "no network", URL)

    monkeypatch.setattr(Store, "write", fails)
    upload = Upload(folder)
    upload.finish(0)  # not started
    upload.start()
    upload.finish(0)
    (line,) = capsys.readouterr().err.splitlines()
    assert "no network" in line
    assert f"sage sync {tmp_path}" in line


def test_a_store_that_hangs_holds_up_the_end_of_a_run_for_a_bounded_time(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pretend(tmp_path)
    (tmp_path / ".remote.json").write_text(json.dumps({"url": URL}))
    answered = threading.Event()
    monkeypatch.setattr(Store, "write", lambda *_: answered.wait())
    monkeypatch.setattr(background, "AT_END", {0: 0.1})
    upload = Upload(folder)
    upload.start()
    upload.finish(0)
    answered.set()
    (line,) = capsys.readouterr().err.splitlines()
    assert "not complete after 0.1 s" in line
    assert f"sage sync {tmp_path}" in line


def test_pauses_double_up_to_a_limit_also_after_days_of_failures() -> None:
    assert [background.pause_after(failures) for failures in (1, 2, 3)] == [2.0, 4.0, 8.0]
    assert background.pause_after(100_000) == background.LONGEST


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/etc/passwd", "a//b", "", ".", "a/./b", "a\\..\\b", "a\0b", "a\nb", "x" * 1001],
)
def test_a_name_that_leads_out_of_the_folder_is_not_inside(name: str) -> None:
    assert not is_inside(name)


def test_copies_stay_in_their_folder_and_have_no_code(tmp_path: Path, memory: Memory) -> None:
    folder = pretend(tmp_path / "runs")
    checkpoint(folder, 1)
    uploaded(folder)
    memory.put("run/../../outside/config.json", b"{}")
    memory.put("run/evil.pkl", b"cos\nsystem\n")
    outside = tmp_path / "outside.json"
    outside.write_text("mine")
    copies = tmp_path / "copies" / "of"
    (copies / "run").mkdir(parents=True)
    (copies / "run" / "config.json").symlink_to(outside)
    (copies / "gone.json").touch()
    for _ in range(2):
        fetch(URL, copies)
        found = sorted(path.relative_to(tmp_path).as_posix() for path in copies.rglob("*") if path.is_file())
        wanted = ("config.json", "manifest.json", "metrics.jsonl", "result.json")
        assert found == [f"copies/of/run/{name}" for name in wanted]
        assert all((copies / "run" / name).read_bytes() == (folder / name).read_bytes() for name in wanted)
    assert outside.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copies", "outside.json", "runs"]


def test_a_copy_that_differs_from_its_checksum_is_named(
    tmp_path: Path, memory: Memory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pretend(tmp_path / "runs")
    uploaded(folder)
    content = (folder / "result.json").read_bytes()
    memory.put("run/result.json", content.replace(b"1", b"2"))
    fetch(URL, tmp_path / "copies")
    assert "result.json differs from its checksum" in capsys.readouterr().err
