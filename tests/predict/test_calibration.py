"""Tests of a calibration's file: it is read as it was written, and a damaged file is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_calibration import calibration

from sage.predict.calibration import read, write
from sage.storage import OtherVersion, Unreadable


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.json"
    write(path, calibration(noise=0.1))
    return path


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the content of a file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_a_written_calibration_is_read_unchanged(written: Path) -> None:
    assert read(written) == calibration(noise=0.1)


def test_keys_of_a_later_version_are_left_out(written: Path) -> None:
    changed(written, lambda content: content["model"]["parameters"][0].update(dtype="float32"))
    changed(written, lambda content: content["links"][0].update(switch="left"))
    assert read(written) == calibration(noise=0.1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("links"), "needs the key 'links'"),
        (
            lambda c: c["links"][3].update(collective="gossip"),
            "'collective' is 'gossip', not 'all_reduce' or",
        ),
        (lambda c: c["links"][3].update(ranks=1), "item 3 of 'links' has ranks 1; allowed is 2 or more"),
        (lambda c: c["links"][3].update(bytes=0), "has bytes 0; allowed is 1 or more"),
        (lambda c: c["links"][3].update(seconds=[]), "'seconds' is empty"),
        (lambda c: c["model"].update(gamma=[1, -1]), "'model', 'gamma' has -1; allowed is 0 or more"),
        (lambda c: c["model"].update(parameters=[]), "'model' has no parameters"),
        (lambda c: c["model"]["parameters"][1].update(numel=0), "has numel 0; allowed is 1 or more"),
        (
            lambda c: [each.update(ready_seconds=0) for each in c["model"]["parameters"]],
            "no gradient has ready_seconds above 0",
        ),
        (lambda c: c["methods"][2].update(messages={}), "item 2 of 'methods' has no 'messages'"),
        (lambda c: c["methods"][2].update(decode_seconds={"two": [1]}), "has the world size 'two'"),
        (lambda c: c["methods"][0]["messages"]["2"][0].update(bytes="4"), "'bytes' is '4'"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    written: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    with pytest.raises(Unreadable) as error:
        read(changed(written, change))
    text = str(error.value)
    assert says in text
    assert str(written) in text
    assert text.endswith("; calibrate again")
    assert "\n" not in text


def test_a_file_of_a_newer_version_is_refused(written: Path) -> None:
    with pytest.raises(OtherVersion):
        read(changed(written, lambda content: content.update(format=2)))
