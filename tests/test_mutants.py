"""Tests that the list of faults matches the code, and that `make mutants` recognises detected faults."""

import ast
import re
from functools import cache
from pathlib import Path

import mutate
import pytest
from mutate import CHECKOUT, Mutant, mutants

MUTANTS = mutants()


@cache
def functions_in(file: str) -> set[str]:
    """Return the names of the functions in a test file."""
    parsed = ast.parse((CHECKOUT / file).read_text("utf-8"))
    return {node.name for node in parsed.body if isinstance(node, ast.FunctionDef)}


def test_every_fault_is_listed_once() -> None:
    assert len(MUTANTS) >= 45
    assert len({mutant.fault for mutant in MUTANTS}) == len(MUTANTS)


def test_every_file_of_cuda_kernels_but_two_has_a_fault() -> None:
    files = {path.relative_to(CHECKOUT).as_posix() for path in CHECKOUT.glob("csrc/cuda/*.cu")}
    # philox.cuh, which random_bits.cu includes, has one.
    without = {"csrc/cuda/random_bits.cu", "csrc/cuda/elias_decode.cu"}
    assert files - {mutant.file for mutant in MUTANTS} == without


def test_the_text_that_a_fault_replaces_occurs_once_in_its_file() -> None:
    counts = {m.fault: (CHECKOUT / m.file).read_text("utf-8").count(m.old) for m in MUTANTS}
    assert {fault: count for fault, count in counts.items() if count != 1} == {}


def test_a_file_with_a_fault_differs_and_still_compiles(tmp_path: Path) -> None:
    for mutant in MUTANTS:
        source, copied = CHECKOUT / mutant.file, tmp_path / mutant.file
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(source.read_text("utf-8"), "utf-8")
        mutant.put_into(tmp_path)
        changed = copied.read_text("utf-8")
        assert changed != source.read_text("utf-8"), mutant.fault
        if mutant.file.endswith(".py"):
            compile(changed, mutant.file, "exec")


def test_the_test_that_must_detect_a_fault_exists() -> None:
    for mutant in MUTANTS:
        file, _, name = mutant.test.partition("::")
        if mutant.is_emulated:
            assert re.search(rf'"{name}"|SAGE_TEST\({name}\)', (CHECKOUT / file).read_text("utf-8")), name
            continue
        assert name.partition("[")[0] in functions_in(file), mutant.test


@pytest.mark.parametrize(
    ("status", "output", "seen", "how"),
    [
        (1, "FAILED tests/test_x.py::test_y - assert 3 == 4", True, "seen to fail: assert 3 == 4"),
        (None, "", True, "hangs: seen after 5 s"),
        (0, "1 passed", False, "SURVIVED"),
        (0, "60 skipped", False, "NOT TRIED: pytest ended with 0: 60 skipped"),
        (1, "FAILED tests/test_x.py::test_y - NameError: name 'x'", False, "NOT TRIED: pytest ended with 1"),
        (2, "ERROR tests/test_x.py", False, "NOT TRIED: pytest ended with 2: ERROR tests/test_x.py"),
        (4, "no tests ran", False, "NOT TRIED: pytest ended with 4: no tests ran"),
        (5, "no tests ran", False, "NOT TRIED: pytest ended with 5: no tests ran"),
    ],
)
def test_only_a_failed_or_hanging_test_has_detected_a_fault(
    monkeypatch: pytest.MonkeyPatch, status: int | None, output: str, seen: bool, how: str
) -> None:
    def run(tests: list[str], *, plain: bool, mutant: Mutant, limit: float) -> tuple[int | None, str]:
        assert (tests, plain, limit) == ([MUTANTS[0].test], False, 5)
        return status, output

    monkeypatch.setattr(mutate, "run", run)
    judged = mutate.judge(MUTANTS[0], 5)
    assert judged[0] == seen
    assert judged[1].startswith(how)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("echo 'echo as expected' >$@", (0, "2 passed")),
        ("echo 'echo FAILED: top; exit 1' >$@", (1, "FAILED tests/csrc/emulated.cpp - top")),
        ("echo 'echo emulated block: too few >&2; exit 134' >$@", (1, "emulated block: too few")),
        ("echo 'exec sleep 60' >$@", (None, "")),
        ("echo 'x.cu:1: error: expected ;' >&2; false", (2, "ERROR tests/csrc/emulated.cpp - x.cu:1: error")),
    ],
    ids=["passes", "fails", "aborts", "hangs", "does not compile"],
)
def test_a_fault_in_a_kernel_is_detected_if_it_compiles_and_the_emulated_test_fails(
    tmp_path: Path, recipe: str, expected: tuple[int | None, str]
) -> None:
    (tmp_path / "Makefile").write_text(
        f"build-emulate:\n\t@echo '#!/bin/sh' >$@; chmod +x $@\n\t@{recipe.replace('>$@', '>>$@')}\n"
    )
    status, summary = mutate.run_emulated(["test_top", "test_select"], str(tmp_path), limit=1.0)
    assert status == expected[0]
    assert expected[1] in summary


def test_a_copy_has_all_tracked_files_including_links(tmp_path: Path) -> None:
    mutate.copy(tmp_path)
    assert (tmp_path / "sage" / "reducers").is_symlink()
    assert (tmp_path / "sage" / "reducers" / "topk.py").read_bytes() == (
        CHECKOUT / "reducers" / "topk.py"
    ).read_bytes()
    assert not (tmp_path / ".git").exists()
