"""`sage advise` on real ranks: one verdict, of what was measured."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launcher import PATIENCE, outside

CHECKOUT = Path(__file__).parents[3]
REDUCERS = ("exact", "bf16", "topk", "onebit")


Sage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def sage(sage_command: str) -> Sage:
    """Run a command on digits-ff with two ranks in a folder."""

    def run(folder: Path, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sage_command, command, "digits-ff", "--world-size", "2", *options],
            cwd=folder,
            env={**outside(), "PYTHONPATH": str(CHECKOUT), "SAGE_DATA_DIR": str(folder)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def found(sage: Sage, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The verdict of a short run, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("advise")
    options = ["--reducers", *REDUCERS, "--densities", "0.1", "--minutes", "0.1", "--steps", "3"]
    done = sage(folder, "advise", *options, "--json", "--output", "measured.json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


def test_the_references_and_the_candidates_are_measured_in_the_same_rounds(found: tuple[Any, Path]) -> None:
    verdict, _ = found
    names = [each["name"] for each in verdict["measured"]]
    assert {"--reducer exact --mount ddp", "--reducer bf16 --mount ddp"} <= set(names)
    assert sum("topk" in each or "onebit" in each for each in names) == 2
    assert len({each["rounds"] for each in verdict["measured"]}) == 1
    assert all(each["rounds"] >= 6 and each["seconds"] > 0 for each in verdict["measured"])


def test_the_verdict_is_that_of_the_intervals(found: tuple[Any, Path]) -> None:
    verdict, _ = found
    pays = [each for each in verdict["measured"] if not each["is_dense"] and each["speedup_low"] > 1]
    assert verdict["word"] == ("pays" if pays else "nothing pays")
    assert verdict["recommended"]["name"] in {each["name"] for each in pays or [verdict["reference"]]}


def test_what_is_recommended_can_be_run(sage: Sage, found: tuple[Any, Path]) -> None:
    verdict, folder = found
    done = sage(folder, "run", "--steps", "1", *verdict["recommended"]["name"].split())
    assert done.returncode == 0, done.stderr


def test_the_calibration_is_kept_for_predictions(found: tuple[Any, Path]) -> None:
    _, folder = found
    written = json.loads((folder / "measured.json").read_text())
    assert {each["reducer"] for each in written["methods"]} == set(REDUCERS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--reducers", "topk"], "--reducers has no reference: add exact or bf16"),
        (["--reducers", "exact"], "--reducers has no method that compresses: add one, such as topk"),
        (["--minutes", "0"], "--minutes 0: expected more than 0 and at most 60"),
        (["--reducers", "topl", "exact"], "topl"),
        (["--world-size", "1"], "world_size is 1"),
        (["--output", "."], "it is a folder"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    sage: Sage, tmp_path: Path, options: list[str], expected: str
) -> None:
    done = sage(tmp_path, "advise", *options)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert expected in line
