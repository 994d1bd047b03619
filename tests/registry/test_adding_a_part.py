"""Tests that the data set, task and models of docs/tutorials work unchanged, as files and as entry points."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from sage import registry
from sage.cli.main import main
from sage.config import load
from sage.data.dataset import Dataset
from sage.registry import PartKind, parts

DOCS = Path(__file__).parents[2] / "docs"
TUTORIALS = {
    name: (DOCS / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("data-set", "task", "model")
}
FILES = {
    name: code
    for page in TUTORIALS.values()
    for name, code in re.findall(
        r"^[^\n`]*`(\w+)\.py`[^\n]*:\n\n^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL
    )
}


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


(ENTRIES,) = blocks((DOCS / "how-to" / "name-a-part.md").read_text(encoding="utf-8"), "toml")
(WORKLOAD,) = blocks(TUTORIALS["task"], "toml")
(REDUCER,) = blocks((DOCS / "tutorials" / "reducer.md").read_text(encoding="utf-8"), "python")
SWEEP = """
workload = "installed.toml"
reducer = ["exact", "everyother"]
steps = 20
device = "cpu"
workers_in_process = true
"""
SHORT = ["--steps", "2", "--world-size", "2", "--workers-in-process"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files."""
    for name, code in FILES.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    (tmp_path / "waves.toml").write_text(WORKLOAD, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAGE_DATA_DIR", raising=False)
    return tmp_path


@pytest.fixture
def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same as an installed package with the page's entry points."""
    result = folder / "my_package-1.0.dist-info"
    result.mkdir()
    (result / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", ENTRIES).replace('"', "")
    (result / "entry_points.txt").write_text(lines)
    (folder / "my_package").mkdir()
    for name, code in {**FILES, "everyother": REDUCER}.items():
        (folder / "my_package" / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    parts._all_entries.cache_clear()
    yield folder
    parts._all_entries.cache_clear()


def final(runs: Path) -> dict[str, Any]:
    """The metrics at the end of the only run."""
    (path,) = runs.glob("*/result.json")
    found: dict[str, Any] = json.loads(path.read_text())["final"]
    return found


def test_the_pages_have_a_file_for_every_kind_of_part() -> None:
    assert set(FILES) == {"waves", "read_waves", "regress", "perceptron", "linear", "gru", "factors"}
    assert len(FILES) == sum(page.count("```python\n") for page in TUTORIALS.values())
    assert re.findall(r'entry-points\."sage\.(\w+)"', ENTRIES) == ["models", "datasets", "tasks", "reducers"]
    assert set(get_args(PartKind)) == {"models", "datasets", "tasks", "reducers"}


def test_the_data_set_of_the_tutorial_is_prepared_once_and_read(folder: Path) -> None:
    (prepare,), (read,) = (block.splitlines() for block in blocks(TUTORIALS["data-set"], "sh"))
    assert main(shlex.split(prepare)[1:]) == 0
    written = (folder / "data" / "waves.csv").read_bytes()
    assert main(shlex.split(prepare)[1:]) == 0
    assert (folder / "data" / "waves.csv").read_bytes() == written
    assert read.split() == ["python", "read_waves.py"]
    waves = registry.load("datasets", "./waves.py")
    exec(FILES["read_waves"].replace("from waves import DATASET\n", ""), {"DATASET": waves})


def test_the_task_of_the_tutorial_trains_on_that_data_set(folder: Path) -> None:
    (block,) = blocks(TUTORIALS["task"], "sh")
    prepare, run = (shlex.split(line)[1:] for line in block.splitlines())
    assert main(prepare) == 0
    assert main([*run, "--workers-in-process"]) == 0
    assert 0 < final(folder / "runs")["rmse"] < 0.5  # the sine's own deviation is 0.7
    (manifest,) = (folder / "runs").glob("*/manifest.json")
    assert set(json.loads(manifest.read_text())["checksums"]) == {"waves.csv"}


@pytest.mark.parametrize("command", [block.strip() for block in blocks(TUTORIALS["model"], "sh")])
def test_the_models_of_the_tutorial_train_under_each_task_of_the_repository(
    folder: Path, command: str
) -> None:
    limits = ["--data.limit-test", "2000"] if "lstm" in command else []
    assert main([*shlex.split(command)[1:], *SHORT, *limits]) == 0
    assert final(folder / "runs")


def test_a_missing_file_prepare_or_fact_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "waves.toml", "--workers-in-process"]) == 2
    assert "waves.csv is missing: run `sage data prepare ./waves.py`" in capsys.readouterr().err
    (folder / "bare.py").write_text('"""Bare: it cannot be prepared."""\nclass Bare: ...\nDATASET = Bare\n')
    assert main(["data", "prepare", "./bare.py"]) == 2
    assert "the data set ./bare.py has no `prepare`" in capsys.readouterr().err
    waves = load_waves(folder)
    with pytest.raises(
        ValueError, match="the task Classify needs num_classes, which the data set does not g"
    ):
        registry.load("tasks", "classify")(waves.facts)


def test_the_ranks_shares_of_the_data_set_are_disjoint_and_cover_it(folder: Path) -> None:
    waves = load_waves(folder)
    size = {"world_size": 3, "batch_size": 32}
    each = [list(waves.train_batches(epoch=1, rank=rank, seed=4, **size)) for rank in range(3)]
    assert {len(batches) for batches in each} == {waves.num_steps(**size)}
    x_N = torch.cat([x for batches in each for x, _ in batches])
    assert len(x_N.unique()) == len(x_N) == 3 * 32 * waves.num_steps(**size)
    later = list(waves.train_batches(epoch=1, rank=1, seed=4, start=2, **size))
    assert torch.equal(later[0][0], each[1][2][0])
    tested = torch.cat([x for rank in range(3) for x, _ in waves.test_batches(rank=rank, **size)])
    assert len(tested.unique()) == len(tested) == 100
    assert not set(tested.flatten().tolist()) & set(x_N.flatten().tolist())


def test_the_same_parts_are_found_by_entry_point_and_by_dotted_name(package: Path) -> None:
    parts: tuple[tuple[PartKind, str, str], ...] = (
        ("models", "perceptron", "Perceptron: one hidden layer"),
        ("datasets", "waves", "Waves: noisy samples"),
        ("tasks", "regress", "Regress: predict numbers"),
    )
    for kind, name, first in parts:
        assert name in registry.names(kind)
        assert registry.summary(kind, name).startswith(first)
        assert registry.load(kind, name) is registry.load(kind, f"my_package.{name}")
    assert "everyother" in registry.names("reducers")
    assert main(["data", "prepare", "waves", "data"]) == 0
    named = ["--task", "regress", "--data", "waves", "--model", "perceptron", "--reducer", "exact"]
    assert main(["run", "digits-ff", *named, "--steps", "2", "--workers-in-process"]) == 0
    assert set(final(package / "runs")) == {"rmse"}


def test_a_package_with_its_own_model_data_set_task_and_reducer_is_swept_and_reported(
    package: Path, sage: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (package / "installed.toml").write_text(re.sub(r'"\./(\w+)\.py"', r'"\1"', WORKLOAD))
    (package / "sweep.toml").write_text(SWEEP)
    for command in (
        "data prepare waves data",
        "submit sweep.toml --cluster debug",
        "report runs --output page",
    ):
        done = sage(*command.split(), paths=(package,))
        assert done.returncode == 0, done.stderr
    (table,) = (package / "page").glob("*.md")
    text = table.read_text(encoding="utf-8")
    assert "The metric is rmse: lower is better." in text
    assert re.search(r"^\| everyother +\|", text, re.MULTILINE)


def test_a_runs_hash_depends_on_the_content_of_a_parts_file_and_not_on_its_path(folder: Path) -> None:
    def name(model: Path) -> str:
        return load("digits-ff", overrides={"model": str(model), "reducer": "exact"}).folder.name

    here, there = folder / "linear.py", folder / "elsewhere" / "linear.py"
    there.parent.mkdir()
    there.write_text(FILES["linear"], encoding="utf-8")
    assert name(there) == name(here)
    there.write_text(FILES["linear"] + "# changed\n", encoding="utf-8")
    assert name(there) != name(here)


def load_waves(folder: Path) -> Dataset:
    """The page's data set, prepared."""
    part = registry.load("datasets", str(folder / "waves.py"))
    part.prepare(folder / "data")  # type: ignore[attr-defined]
    waves: Dataset = part(folder / "data")
    return waves
