"""Tests that the one file shown in docs/tutorials/reducer.md adds a reducer from an external package."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sage.testing.conformance import INVARIANTS

PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "reducer.md"
DEAF = '''

class Deaf(EveryOther):
    """Every rank keeps to its own mean."""

    def forward(self, grad_N, residual_N, wire):
        reduced = super().forward(grad_N, residual_N, wire)
        reduced.mean_N[:1] += wire.rank
        return reduced


REDUCER = Deaf
'''
"""A reducer that breaks one invariant, appended to the page's."""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a folder as pip installs it: the page's one file and the metadata of its entry point."""
    page = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (entry,) = re.findall(r'^ *(everyother) = "(everyother)"$', page, re.MULTILINE)
    folder = tmp_path / "site"
    metadata = folder / "everyother-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "everyother.py").write_text(code, encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: everyother\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[sage.reducers]\n{} = {}\n".format(*entry))
    return folder


def test_a_reducer_from_another_package_is_listed_checked_and_run(
    sage: Command, package: Path, tmp_path: Path
) -> None:
    listed = sage("list", paths=(package,))
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"^  everyother +Every other: one element in two", listed.stdout, re.MULTILINE)

    conformed = sage("conform", "everyother", "--world-sizes", "1", "3", "--stride", "3", paths=(package,))
    assert conformed.returncode == 0, conformed.stdout + conformed.stderr
    # It has no option `density`, and does not send the non-finite element.
    assert conformed.stdout.startswith("everyother: 14 invariants: 12 kept, 2 n/a")
    assert re.search(r"density one is all reduce +│ n/a +│ n/a", conformed.stdout)
    assert "broken" not in conformed.stdout

    tiny = ("--model", "feedforward", "--steps", "3", "--stride", "4", "--runs", str(tmp_path / "runs"))
    run = sage("run", "digits", "--reducer", "everyother", *tiny, paths=(package,))
    assert run.returncode == 0, run.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-everyother-")
    result = (folder / "result.json").read_text()
    assert re.search(r'"density_had": 0\.2[45]', result)


def test_any_module_that_exports_a_reducer_is_checked_against_the_invariants(
    sage: Command, package: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "path" / "my_package"
    mine.mkdir(parents=True)
    code = (package / "everyother.py").read_text(encoding="utf-8")
    (mine / "my_reducer.py").write_text(code, encoding="utf-8")
    (mine / "deaf.py").write_text(code + DEAF, encoding="utf-8")

    kept = sage("conform", "my_package.my_reducer", "--world-sizes", "2", paths=(mine.parent,))
    assert kept.returncode == 0, kept.stdout + kept.stderr
    assert "broken" not in kept.stdout

    broken = sage("conform", "my_package.deaf", "--world-sizes", "2", paths=(mine.parent,))
    assert broken.returncode == 1
    assert re.search(r"ranks agree +│ broken", broken.stdout)
    assert re.search(r"global random state is unchanged +│ kept", broken.stdout)
    assert (
        "ranks_agree, W = 2, memory residual: Broken: step 0: the means of ranks 0 and 1 differ"
        in broken.stdout
    )

    absent = sage("conform", "my_package.nothing", paths=(mine.parent,))
    assert absent.returncode == 2
    assert "there is no module of this name; check that it is installed or on PYTHONPATH" in absent.stderr


def test_a_mistyped_option_of_an_external_reducer_is_refused(sage: Command, package: Path) -> None:
    refused = sage("conform", "everyother", "--stride", "0", paths=(package,))
    assert refused.returncode == 2
    assert "stride=0: expected 1 or more" in refused.stderr


def test_the_page_names_every_invariant() -> None:
    output = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert output == [invariant.__name__ for invariant in INVARIANTS]
