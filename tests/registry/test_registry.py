"""Tests that parts are found by file name and entry point, with the options of their signatures."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from sage.registry import FACTS, Option, PartKind, check_options, load, names, options, parts, summary
from sage.registry.signature import facts_for
from sage.validate import LATER, marks

CHECKOUT = Path(__file__).parents[2]
KINDS_OF_PARTS: tuple[PartKind, ...] = get_args(PartKind)
PARTS = [(kind, name) for kind in KINDS_OF_PARTS for name in names(kind)]


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another package with the reducers `halves` (a module) and `thirds` (an object)."""
    (tmp_path / "halves_and_thirds.py").write_text(
        '"""Halves: from another package."""\nclass Halves: ...\nclass Thirds: ...\nREDUCER = Halves\n'
    )
    result = tmp_path / "other-1.0.dist-info"
    result.mkdir()
    (result / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (result / "entry_points.txt").write_text(
        "[sage.reducers]\nhalves = halves_and_thirds\nthirds = halves_and_thirds:Thirds\n"
        "topk = halves_and_thirds\nlost = nowhere.at_all\n[sage.models]\nempty = halves_and_thirds\n"
        "[sage.tasks]\nsixths = halves_and_thirds:Thirds\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    parts._all_entries.cache_clear()
    yield tmp_path
    parts._all_entries.cache_clear()
    sys.modules.pop("halves_and_thirds", None)


@pytest.mark.parametrize("kind", KINDS_OF_PARTS)
def test_every_part_file_is_found_by_its_name(kind: PartKind) -> None:
    files = {path.stem for path in (CHECKOUT / kind).glob("*.py") if not path.stem.startswith("_")}
    assert files <= set(names(kind))
    assert names(kind) == sorted(names(kind))


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_part_has_a_one_line_summary(kind: PartKind, name: str) -> None:
    line = summary(kind, name)
    assert len(line) > 20
    assert line.endswith(".")


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_part_has_options_with_types_and_defaults_that_fit(kind: PartKind, name: str) -> None:
    found = options(load(kind, name), kind=kind)
    assert not set(found) & FACTS
    later = {*getattr(load(kind, name), "later", ())}
    later |= {option for option, spec in found.items() if LATER in marks(spec.type)}
    defaults = {option: spec.default for option, spec in found.items() if option not in later}
    assert check_options(kind, name, {}) == defaults


def test_a_mistyped_part_lists_similar_names_and_any_other_lists_all() -> None:
    with pytest.raises(ValueError, match="no reducer is called 'tpok'; did you mean 'topk'"):
        load("reducers", "tpok")
    with pytest.raises(ValueError, match="no data set is called 'qq'; allowed are ag_news, "):
        load("datasets", "qq")


def test_options_are_the_keyword_only_parameters_without_the_facts() -> None:
    class Part:
        """A part.

        Args:
            width (int): how wide,
                over two lines
            depth: how deep

        More words: these are no option.
        """

        def __init__(self, root: Path, *, width: int = 3, depth: float = 1, num_classes: int) -> None: ...

    assert options(Part) == {
        "width": Option(int, 3, "how wide, over two lines"),
        "depth": Option(float, 1.0, "how deep"),
    }


def test_an_option_needs_a_default_and_a_type() -> None:
    def bare(*, width: int) -> None: ...

    def untyped(*, width=3): ...  # type: ignore[no-untyped-def]

    for part in (bare, untyped):
        with pytest.raises(ValueError, match="the option 'width' of .* needs a default and a type"):
            options(part)


def test_given_options_are_checked_and_the_others_get_their_defaults() -> None:
    checked = check_options("reducers", "topk", {"density": 1})
    assert checked["density"] == 1.0
    assert type(checked["density"]) is float
    assert checked["values"] == "fp32"
    with pytest.raises(ValueError, match="values is 'fp8'; allowed is one of 'fp32', 'fp16'"):
        check_options("reducers", "topk", {"values": "fp8"})
    with pytest.raises(
        ValueError, match="no option of the reducer topk is called 'densty'; did you mean 'density'"
    ):
        check_options("reducers", "topk", {"densty": 1})


def test_another_packages_parts_are_found_and_described_without_importing_them(other_package: Path) -> None:
    assert {"halves", "thirds"} < set(names("reducers"))
    assert summary("reducers", "halves") == "Halves: from another package."
    assert "halves_and_thirds" not in sys.modules
    assert summary("reducers", "lost") == ""


def test_an_entry_point_is_a_module_or_an_object(other_package: Path) -> None:
    assert load("reducers", "halves").__name__ == "Halves"
    assert load("reducers", "thirds").__name__ == "Thirds"


def test_an_entry_point_may_not_take_the_name_of_a_file(other_package: Path) -> None:
    with pytest.raises(
        ValueError, match="'topk' is a file of reducers/ and also the entry point 'halves_and_thirds'"
    ):
        load("reducers", "topk")


def test_a_module_without_its_export_is_refused(other_package: Path) -> None:
    with pytest.raises(ValueError, match="the module halves_and_thirds exports no MODEL"):
        load("models", "empty")


def test_a_part_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text('"""Mine: of a file."""\ndef build(*, width: int = 3): ...\nREDUCER = MODEL = build\n')
    assert summary("reducers", str(file)) == "Mine: of a file."
    assert check_options("models", str(file), {}) == {"width": 3}
    assert load("reducers", str(file)) is load("reducers", str(file))
    file.write_text("def build(*, depth: int = 4): ...\nMODEL = build\n")
    assert check_options("models", str(file), {}) == {"depth": 4}
    with pytest.raises(ValueError, match="exports no REDUCER; add `REDUCER"):
        load("reducers", str(file))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import nothing_of_this_name", r"ModuleNotFoundError: No module named .*mine.py, line 1\)"),
        ("\n\ndef (:", r"SyntaxError: .*mine.py, line 3\)"),
        ("x = 1\nraise RuntimeError('a\\nb')", r"RuntimeError: a b \(.*mine.py, line 2\)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("REDUCER = 3", "expected a class or a function, found 3"),
        ("\0", "cannot be imported"),
        (
            "def build(*, x: 'nowhere' = 1): ...\nREDUCER = build",
            "the types of the options .*nowhere",
        ),
    ],
)
def test_a_part_that_cannot_be_used_is_named_in_one_line(tmp_path: Path, source: str, says: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(ValueError, match=says) as refused:
        check_options("reducers", str(file), {})
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", [".topk", "topk.", "a..b", "a.-", ".", "..", "a b.c", "1.5", "topk+.x"])
def test_a_part_that_is_neither_a_name_nor_a_module_nor_a_file_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no reducer is called .*; allowed are a name of `sage list`"):
        load("reducers", name)


def test_a_part_with_a_fault_is_listed_with_the_reason(other_package: Path) -> None:
    (other_package / "halves_and_thirds.py").write_text("def (:")
    assert summary("reducers", "halves").startswith("(cannot be read: invalid syntax")


def test_a_model_gets_the_facts_that_it_requires_from_the_data_set() -> None:
    def build(*, width: int = 3, frames: int, num_classes: int) -> None: ...

    assert set(options(build, kind="models")) == {"width"}
    given = {"frames": 7, "num_classes": 2, "width": 99}
    assert facts_for(build, given, model="m", data="d") == {"frames": 7, "num_classes": 2}
    with pytest.raises(ValueError, match="the model m needs frames, which the data set d does not give; its"):
        facts_for(build, {"num_classes": 2}, model="m", data="d")


def test_tasks_are_found_by_name_and_by_entry_point(other_package: Path) -> None:
    assert {"classify", "convex", "language_model", "recommend", "sixths", "transcribe"} == set(
        names("tasks")
    )
    assert load("tasks", "sixths").__name__ == "Thirds"
    assert summary("tasks", "classify").startswith("Classification: cross entropy")


def test_listing_imports_neither_torch_nor_any_part() -> None:
    code = """
import sys
from sage.registry import EXPORTS, names, summary
for kind in EXPORTS:
    for name in names(kind):
        summary(kind, name)
        assert f"sage.{kind}.{name}" not in sys.modules
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
