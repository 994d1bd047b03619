"""Tests of checkpoints: atomic, verified, and complete enough to resume bitwise identically."""

import errno
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sage import storage
from sage.train.checkpoint import load, newest, rng_state, save, set_rng_state
from sage.train.optimizers import build_optimizer


def save_alone(folder: Path, step: int, value: float | None = None) -> None:
    content = {"value": float(step) if value is None else value, "tensor": torch.arange(5.0)}
    save(folder, step, shared=content, own=content, rank=0, world_size=1, gather=lambda text: [text])


def value_of(folder: Path) -> float:
    """The newest checkpoint's value, the same in both of its files."""
    found = newest(folder)
    assert found
    shared, own = load(found.path, 0)
    assert shared["value"] == own["value"]
    return float(own["value"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def thread_gathers(world_size: int) -> list[Callable[[str], list[str]]]:
    """Return a gather for each of this number of threads."""
    texts, barrier = [""] * world_size, threading.Barrier(world_size, timeout=60)

    def gather(rank: int, text: str) -> list[str]:
        texts[rank] = text
        barrier.wait()
        gathered = list(texts)
        barrier.wait()
        return gathered

    return [lambda text, rank=rank: gather(rank, text) for rank in range(world_size)]  # type: ignore[misc]


def test_a_checkpoint_returns_what_was_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = build_optimizer(model, kind="adam", lr=0.1, decay_norms=False)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    shared = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": None}
    own = {"random": rng_state(), "task": {"hidden": (torch.randn(2), torch.randn(2))}}
    save(tmp_path, 12, shared=shared, own=own, rank=0, world_size=1, gather=lambda text: [text])
    found = newest(tmp_path)
    assert found
    assert (found.path.name, found.step, found.world_size) == ("step-00000012", 12, 1)
    shared_again, own_again = load(found.path, 0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(shared_again["model"][name], tensor)
    optimizer.load_state_dict(shared_again["optimizer"])
    assert str(shared_again) == str(shared)
    assert str(own_again) == str(own)


def test_every_rank_loads_its_own_state_from_a_complete_checkpoint(tmp_path: Path) -> None:
    gathers = thread_gathers(3)

    def run(rank: int) -> str:
        for step in (1, 2):
            shared = {"step": step} if rank == 0 else None
            save(
                tmp_path,
                step,
                shared=shared,
                own={"rank": rank},
                rank=rank,
                world_size=3,
                gather=gathers[rank],
            )
            found = newest(tmp_path)
            assert found
            assert (found.step, found.world_size) == (step, 3)
            gathers[rank]("")
        assert found
        return str(load(found.path, rank))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, range(3))) == [f"({{'step': 2}}, {{'rank': {rank}}})" for rank in range(3)]
    found = newest(tmp_path)
    assert found
    with pytest.raises(ValueError, match="was written by 3 ranks"):
        load(found.path, 3)


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save_alone(tmp_path, step)
    assert names(tmp_path) == ["step-00000020", "step-00000030"]


def test_a_run_that_went_back_removes_the_checkpoints_of_later_steps(tmp_path: Path) -> None:
    for step in (10, 20, 15):
        save_alone(tmp_path, step)
    assert names(tmp_path) == ["step-00000010", "step-00000015"]


def test_a_step_saved_again_replaces_what_was_saved(tmp_path: Path) -> None:
    save_alone(tmp_path, 10, value=1)
    save_alone(tmp_path, 10, value=2)
    assert value_of(tmp_path) == 2
    assert names(tmp_path) == ["step-00000010"]


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["shared.pt", "rank-0000.pt"])
def test_a_flipped_bit_is_found_and_the_checkpoint_before_it_used(tmp_path: Path, name: str) -> None:
    save_alone(tmp_path, 10)
    save_alone(tmp_path, 20)
    flip(tmp_path / "step-00000020" / name, 300)
    with pytest.warns(UserWarning, match=rf"step-00000020 is not used: {name} should have .*sha256"):
        assert value_of(tmp_path) == 10


@pytest.mark.parametrize("name", ["shared.pt", "rank-0000.pt", "index.json"])
@pytest.mark.parametrize("damage", [os.remove, lambda path: os.truncate(path, path.stat().st_size // 2)])
def test_a_missing_or_shortened_file_is_found_and_the_checkpoint_before_it_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save_alone(tmp_path, 10)
    save_alone(tmp_path, 20)
    damage(tmp_path / "step-00000020" / name)
    with pytest.warns(UserWarning, match=f"step-00000020 is not used: {name}"):
        assert value_of(tmp_path) == 10


def test_every_flipped_bit_in_the_index_is_detected_and_does_not_stop_the_search(tmp_path: Path) -> None:
    save_alone(tmp_path, 10)
    save_alone(tmp_path, 20)
    index = tmp_path / "step-00000020" / "index.json"
    meant = json.loads(index.read_bytes())
    for position in range(index.stat().st_size):
        flip(index, position)
        with warnings.catch_warnings(record=True) as refused:
            warnings.simplefilter("always")
            found = newest(tmp_path)
        assert found
        if found.step == 20:
            assert (json.loads(index.read_bytes()), refused) == (meant, [])
        else:
            assert (found.step, len(refused)) == (10, 1)
        flip(index, position)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, np.float64(2)]}, r"rank-0000.pt\['a'\]\[1\] is a numpy.float64"),
        ({"a": {"b": Path("x")}}, r"rank-0000.pt\['a'\]\['b'\] is a pathlib"),
        ({signal.SIGKILL: 1}, r"a key of rank-0000.pt is a signal.Signals"),
    ],
)
def test_state_that_could_not_be_read_back_is_refused_before_anything_is_written(
    tmp_path: Path, value: Any, where: str
) -> None:
    with pytest.raises(ValueError, match=where):
        save(tmp_path, 1, shared={}, own=value, rank=0, world_size=1, gather=lambda text: [text])
    assert names(tmp_path) == []


def test_the_random_generators_continue_from_their_saved_state(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [torch.rand(()).item(), random.gauss(), np.random.rand(), np.random.standard_normal()]

    draw()  # leaves one half of a pair of normal numbers in Python's and in NumPy's generator
    save(tmp_path, 1, shared={}, own=rng_state(), rank=0, world_size=1, gather=lambda text: [text])
    expected = [draw() for _ in range(3)]
    found = newest(tmp_path)
    assert found
    set_rng_state(load(found.path, 0)[1])
    assert [draw() for _ in range(3)] == expected


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="each kill needs a process, and only a fork is cheap enough"
)
@pytest.mark.slow
def test_a_save_killed_at_any_moment_leaves_a_checkpoint_to_resume_from(tmp_path: Path) -> None:
    # In its own process, because forking is unsafe with threads, which pytest's process has.
    command = [sys.executable, "-W", "error::UserWarning", __file__, str(tmp_path / "checkpoints")]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert all(int(num_kills) > 10 for num_kills in result.stdout.split())


def kill_everywhere(folder: Path, step: int, before: list[int]) -> int:
    """Kill a save before each of its file-system calls, check the files left, and count the kills."""
    for moment in range(1000):
        for old in before:
            save_alone(folder, old)
        child = os.fork()
        if child == 0:
            kill_at(folder, moment)
            save_alone(folder, step, value=0.5)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert value_of(folder) == 0.5
            shutil.rmtree(folder)
            return moment
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert value_of(folder) in (before[-1], 0.5), names(folder)
        save_alone(folder, step, value=0.25)  # the run continues and saves again
        assert value_of(folder) == 0.25
        assert not any(name.startswith(".") for name in names(folder))
        assert len(names(folder)) <= 2
        shutil.rmtree(folder)
    raise AssertionError("a save does not do so many things")


def kill_at(folder: Path, moment: int) -> None:
    """Kill this process before the given one of its calls in the folder."""
    moments = iter(range(1000))
    sync = os.fsync

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove") and next(moments) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def torn_sync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        if next(moments) == moment:
            if stat.S_ISREG(status.st_mode):
                os.ftruncate(descriptor, status.st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = torn_sync  # type: ignore[assignment]
    sys.addaudithook(audit)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # no power failure is tested, and disks are slow
    # A new step with and without pruning, a step saved again with and without another, and a step gone back.
    for before, step in [([10], 20), ([10, 20], 30), ([10], 10), ([10, 20], 20), ([10, 20], 15)]:
        print(kill_everywhere(Path(sys.argv[1]), step, before))


# A full disk, and files that are not of a checkpoint.


@pytest.mark.parametrize("moment", range(4))
def test_a_full_disk_leaves_the_checkpoint_before_and_the_next_save_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    save_alone(tmp_path, 10)
    calls = iter(range(100))
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == 2 * moment:  # each file is synced, and then its folder, which may fail
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        if moment < 3:
            with pytest.raises(storage.NotWritten, match=r"No space left on device .* bytes are free"):
                save_alone(tmp_path, 20)
        else:
            save_alone(tmp_path, 20)
    found = newest(tmp_path)
    assert found is not None
    assert found.step == (10 if moment < 3 else 20)
    save_alone(tmp_path, 30)
    assert not [name for name in names(tmp_path) if name.startswith(".tmp")]


def test_a_fifo_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    for name in ("rank-0000.pt", "shared.pt", "index.json"):
        save_alone(tmp_path, 10)
        save_alone(tmp_path, 20)
        (tmp_path / "step-00000020" / name).unlink()
        os.mkfifo(tmp_path / "step-00000020" / name)
        with pytest.warns(UserWarning, match="step-00000020 is not used"):
            found = newest(tmp_path)
        assert found is not None
        assert found.step == 10
        if name != "index.json":
            with pytest.raises(ValueError, match=f"{name} is a FIFO"):
                load(tmp_path / "step-00000020", 0)


@pytest.mark.parametrize(
    "change",
    [
        {"world_size": 300_000_000},
        {"world_size": 0},
        {"world_size": "1"},
        {"step": 11},
        {"files": {}},
        {"files": {"shared.pt": 1, "rank-0000.pt": 2}},
        {"files": {"../../x": {"bytes": 1, "sha256": ""}, "shared.pt": {"bytes": 1, "sha256": ""}}},
    ],
)
def test_an_impossible_index_is_refused_at_once(tmp_path: Path, change: dict[str, object]) -> None:
    save_alone(tmp_path, 10)
    index = tmp_path / "step-00000010" / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.warns(UserWarning, match="is not used: index.json") as caught:
        assert newest(tmp_path) is None
    assert len(str(caught[0].message)) < 500


def test_an_unreadable_folder_of_checkpoints_does_not_count_as_empty(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(storage.Unreadable, match="checkpoints cannot be listed: Not a directory"):
        newest(tmp_path / "checkpoints")
