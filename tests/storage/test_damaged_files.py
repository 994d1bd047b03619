"""Tests that a damaged file of a run or checkpoint is named in one line and affects nothing else."""

import random
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import copied, damage, resave
from fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_user import plain_user

from sage.bench import trace
from sage.cli.main import main
from sage.jobs import status as _imported_while_its_files_can_be_read  # noqa: F401
from sage.report.groups import grouped
from sage.report.page import page
from sage.report.report import as_csv, markdown
from sage.report.runs import read_runs

pytestmark = pytest.mark.filterwarnings("ignore:checkpoint .* is not used:UserWarning")

TOPK = ["--reducer", "topk", "--density", "0.1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, an interrupted one, and a trace."""
    folder = tmp_path_factory.mktemp("whole")
    for reducer in (["--reducer", "exact"], TOPK):
        assert status_and_stderr(run(folder / "runs", *reducer))[0] == 0
    interrupted = one(folder / "runs", "topk")
    (interrupted / "result.json").unlink()
    shutil.rmtree(max((interrupted / "checkpoints").iterdir()))
    size = ["--steps", "3", "--elements", "50", "--world-size", "2"]
    assert (
        status_and_stderr(["bench", "record", "digits-ff", *size, "--out", str(folder / "trace.pt")])[0] == 0
    )
    return folder


def run(runs: Path, *more: str) -> list[str]:
    size = ["--steps", "4", "--checkpoint-every", "2", "--world-size", "2", "--workers-in-process"]
    return ["run", "digits-ff", *size, "--runs", str(runs), *more]


def one(runs: Path, reducer: str) -> Path:
    (folder,) = runs.glob(f"digits-ff-{reducer}-*")
    return folder


@contextmanager
def in_time(seconds: int = 120) -> Iterator[None]:
    """Fail after a time limit."""

    def late(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def status_and_stderr(argv: Sequence[str]) -> tuple[int, str]:
    """The exit status of a command, and what it wrote to stderr; anything raised is a failure."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as err:
        status = main(argv)
    return status, err.getvalue()


def is_a_line(stderr: str) -> bool:
    """Whether the error is one line of SAGE, without internal names and tracebacks."""
    line = stderr.strip().splitlines()[-1]
    inner = ("Traceback", "weights_only", "Error:", "Error(", "traceback")
    return line.startswith("sage") and not any(word in stderr for word in inner)


SETTINGS = settings(
    max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


@SETTINGS
@given(seed=st.integers(0, 2**32))
def test_one_damaged_file_of_a_run_is_named_and_affects_nothing_else(whole: Path, seed: int) -> None:
    damage_and_read(whole, seed)


def damage_and_read(whole: Path, seed: int) -> None:
    """Damage one file of one run; read both runs and their states, and start the damaged one again."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch, in_time():
        runs = copied(whole / "runs", Path(scratch, "runs"))
        reducer = draw.choice(("exact", "topk"))
        folder, other = one(runs, reducer), one(runs, {"exact": "topk", "topk": "exact"}[reducer])
        files = sorted(
            path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts
        )
        # The files outside checkpoints are damaged as often as those inside, which are many.
        files = [path for path in files if ("checkpoints" in path.parts) == (draw.random() < 0.4)] or files
        path = draw.choice(files)
        how = f"{path.relative_to(runs)}: {damage(path, draw)}"

        found, unreadable = read_runs([runs])
        groups = grouped(found)
        markdown(groups, unreadable)
        as_csv(groups)
        assert other in {each.folder for each in found}, how
        assert not unreadable.keys() - {folder}, how
        for why in unreadable.values():
            assert "\n" not in why, how
            assert not re.search(r"damaged: [A-Za-z]+Error", why), f"{how}: {why}"
        if draw.random() < 0.06:
            page(groups, unreadable)

        assert status_and_stderr(["status", str(runs)])[0] == 0, how
        if draw.random() < 0.25 or (reducer == "topk" and "checkpoints" in path.parts):
            more = ["--reducer", "exact"] if reducer == "exact" else [*TOPK]
            if draw.random() < 0.3:
                more += ["--epochs", "2", "--steps", "6", "--continue-from", str(folder)]
            status, stderr = status_and_stderr(run(runs, *more))
            assert status in (0, 2), f"{how}: {stderr}"
            assert status == 0 or (is_a_line(stderr) and folder.name in stderr), f"{how}: {stderr}"


def loaded(path: Path) -> tuple[trace.Trace | None, str]:
    """The trace in a file, or the error of one that cannot be used."""
    try:
        return trace.load(path), ""
    except ValueError as error:
        return None, str(error)


@SETTINGS
@given(seed=st.integers(0, 2**32))
def test_a_damaged_trace_is_named(whole: Path, seed: int) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch, in_time():
        path = Path(shutil.copy(whole / "trace.pt", scratch))
        how = damage(path, draw)
        found, why = loaded(path)
        if found is None:
            assert str(path) in why, how
            assert "\n" not in why, how
            assert "weights_only" not in why, how
            return
        assert len(found.name) > 0 or "workload" in how, how
        for step in range(len(found)):
            for rank in range(found.world_size):
                found.gradient(step, rank)
        assert found.drop is None or found.drop >= 0


# Particular cases.


@pytest.mark.parametrize("content", ["", '{"metric": "acc', "{}", "[]"])
def test_a_damaged_result_is_named_when_the_run_is_repeated(
    whole: Path, tmp_path: Path, content: str
) -> None:
    runs = copied(whole / "runs", tmp_path / "runs")
    path = one(runs, "exact") / "result.json"
    path.write_text(content)
    status, stderr = status_and_stderr(run(runs, "--reducer", "exact"))
    assert status == 2
    assert is_a_line(stderr)
    assert f"{path} is damaged" in stderr
    assert "--fresh" in stderr
    status, stderr = status_and_stderr(run(runs, "--reducer", "exact", "--fresh"))
    assert status == 0, stderr
    assert not read_runs([runs])[1]


def test_a_finished_run_without_its_metrics_is_not_reported_as_finished(whole: Path, tmp_path: Path) -> None:
    runs = copied(whole / "runs", tmp_path / "runs")
    folder = one(runs, "exact")
    (folder / "metrics.jsonl").unlink()
    status, stderr = status_and_stderr(run(runs, "--reducer", "exact"))
    assert status == 2
    assert f"{folder} has a result.json but no metrics.jsonl" in stderr
    assert set(read_runs([runs])[1]) == {folder}


def test_fresh_removes_the_result_first_and_does_not_follow_links(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = copied(whole / "runs", tmp_path / "runs")
    folder = one(runs, "exact")
    elsewhere = tmp_path / "scratch"
    (folder / "checkpoints").rename(elsewhere)
    (folder / "checkpoints").symlink_to(elsewhere)
    (folder / "notes").symlink_to("nowhere")
    kept = sorted(path.name for path in elsewhere.iterdir())
    with monkeypatch.context() as patch:
        from sage import storage

        remove, removed = storage.remove, list[Path]()

        def fail_third(path: Path) -> None:
            if len(removed) == 2:
                raise PermissionError(13, "Permission denied", str(path))
            removed.append(path)
            remove(path)

        patch.setattr(storage, "remove", fail_third)
        status, stderr = status_and_stderr(run(runs, "--reducer", "exact", "--fresh"))
        assert status in (1, 2)
        assert "Permission denied" in stderr
    assert [path.name for path in removed] == ["result.json", "checkpoints"]
    assert not (folder / "result.json").exists()
    status, stderr = status_and_stderr(run(runs, "--reducer", "exact", "--fresh"))
    assert status == 0, stderr
    assert "already finished" not in stderr
    assert sorted(path.name for path in elsewhere.iterdir()) == kept
    assert not (folder / "checkpoints").is_symlink()
    assert (folder / "result.json").exists()


def test_a_run_folder_that_is_a_link_can_be_run_reported_and_cleared(whole: Path, tmp_path: Path) -> None:
    runs = copied(whole / "runs", tmp_path / "runs")
    folder = one(runs, "exact")
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    assert "already finished" in status_and_stderr(run(runs, "--reducer", "exact"))[1]
    assert len(read_runs([runs])[0]) == 2
    assert status_and_stderr(run(runs, "--reducer", "exact", "--fresh"))[0] == 0
    assert folder.is_symlink()
    assert (tmp_path / "moved" / "result.json").exists()


@pytest.mark.parametrize("name", ["", "metrics.jsonl", "config.json", "result.json", "manifest.json"])
def test_unreadable_files_of_another_user_are_a_one_line_error(whole: Path, name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        runs = copied(whole / "runs", Path(scratch, "runs"))
        folder = one(runs, "exact")
        (folder / name).chmod(0)
        try:
            with plain_user(runs):
                found, unreadable = read_runs([runs])
                status, stderr = status_and_stderr(["status", str(runs)])
                again = (
                    status_and_stderr(run(runs, "--reducer", "exact"))
                    if name in ("", "result.json")
                    else (2, "sage")
                )
        finally:
            (folder / name).chmod(0o755)
        assert len(found) == 1
        assert set(unreadable) == {folder}
        assert "Permission denied" in unreadable[folder]
        assert status == 0, stderr
        assert again[0] == 2
        assert is_a_line(again[1])


@pytest.mark.parametrize(
    ("name", "keys", "value", "reason"),
    [
        ("shared.pt", ["optimizer"], None, "needs the key 'optimizer'"),
        ("shared.pt", ["model", "net.1.weight"], torch.ones(2, 2), "size mismatch"),
        ("shared.pt", ["optimizer", "param_groups", 0, "dampening"], None, "dampening is missing"),
        ("shared.pt", ["optimizer", "param_groups", 0, "momentum"], "0.9", "momentum is str, not float"),
        ("shared.pt", ["step"], "3", "'step' is '3', not a whole number"),
        ("rank-0001.pt", ["tally", "loss"], None, "'tally' needs the key 'loss'"),
        ("rank-0000.pt", ["feedback", "residual_N"], torch.ones(1), "residual_N"),
        ("rank-0000.pt", ["random", "python"], (1, 2), "setstate"),
    ],
)
@pytest.mark.parametrize("continues", [False, True])
def test_an_intact_checkpoint_that_does_not_fit_is_a_one_line_error(
    whole: Path, tmp_path: Path, name: str, keys: list[Any], value: object, reason: str, continues: bool
) -> None:
    runs = copied(whole / "runs", tmp_path / "runs")
    folder = one(runs, "topk")
    (path,) = (folder / "checkpoints").glob(f"*/{name}")
    content = torch.load(path, weights_only=True)
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    key = keys[-1] if keys[-1] in inner else next(iter(inner))
    if value is None:
        del inner[key]
    else:
        inner[key] = value
    resave(path, content)
    more = ["--epochs", "2", "--steps", "6", "--continue-from", str(folder)] if continues else []
    status, stderr = status_and_stderr(run(runs, *TOPK, *more))
    if continues and keys[0] == "random":  # which starts again from step 0
        assert status == 0, stderr
        return
    assert status == 2, stderr
    assert is_a_line(stderr)
    assert reason in stderr
    assert str(folder) in stderr
