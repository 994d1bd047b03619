"""Tests of the documentation's pictures: the script that creates them, and the files that pages show."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "pictures.py"))
PICTURES = sorted(path for path in (ROOT / "docs" / "pictures").iterdir() if path.suffix in (".png", ".svg"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_picture_that_a_page_shows_exists(page: Path) -> None:
    text = page.read_text()
    shown = re.findall(r'(?:src|srcset)="([^"#]+)', text) + re.findall(r"!\[[^]]*\]\(([^)#\s]+)", text)
    missing = [name for name in shown if not name.startswith("http") and not (page.parent / name).exists()]
    assert not missing


def test_every_picture_is_shown_on_a_page_in_both_versions() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [path.name for path in PICTURES if f"pictures/{path.name}" not in text] == []


def test_every_picture_is_small_and_has_a_light_and_a_dark_version() -> None:
    assert PICTURES
    assert max(path.stat().st_size for path in PICTURES) <= SCRIPT["MAX_BYTES"]
    versions = {path.stem.rpartition("-")[::2] for path in PICTURES}
    names = ("figures", "report", "status", "tensorboard")
    assert versions >= {(name, scheme) for name in names for scheme in SCRIPT["SCHEMES"]}


def test_the_status_of_the_sweep_is_drawn_as_it_is_printed(tmp_path: Path) -> None:
    sweep = tmp_path / "digits.toml"
    sweep.write_text(SCRIPT["SWEEP"])
    (tmp_path / "runs").mkdir()
    SCRIPT["status"](sweep, tmp_path / "runs", tmp_path)
    command = [sys.executable, "-m", "sage", "status", str(sweep), "--runs", str(tmp_path / "runs")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
    runs = re.findall(r"digits-ff-\S+", printed)
    assert len(runs) == 8
    for scheme in SCRIPT["SCHEMES"]:
        svg = (tmp_path / f"status-{scheme}.svg").read_text()
        words = " ".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")
        assert all(run in words for run in runs)


def test_a_terminal_is_drawn_in_its_colours_and_loads_nothing() -> None:
    drawn = {
        scheme: SCRIPT["terminal_svg"]("\x1b[32mdone\x1b[0m <b>", "title", scheme)
        for scheme in SCRIPT["SCHEMES"]
    }
    for scheme, svg in drawn.items():
        green = "#{:02x}{:02x}{:02x}".format(*SCRIPT["TERMINALS"][scheme].ansi_colors[2])
        assert green in svg
        assert not re.search(r"url\((?!#)|href=|@import|@font-face", svg)
        assert "done" in " ".join(ElementTree.fromstring(svg).itertext())
    assert drawn["light"] != drawn["dark"]


def test_a_large_picture_is_reduced_and_one_that_stays_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    steps_XY = numpy.add.outer(numpy.arange(600) // 3, numpy.arange(800) // 3)
    rough_XYC = numpy.random.default_rng(0).integers(0, 6, (600, 800, 3)) + (steps_XY % 250)[..., None]
    Image.fromarray(rough_XYC.astype(numpy.uint8)).save(path)
    small_XYC = numpy.zeros((600, 800, 3), numpy.uint8)
    with pytest.raises(ValueError, match="at most 200000 are allowed"):
        SCRIPT["shrink"](path)
    Image.fromarray(small_XYC).save(path, compress_level=0)
    assert path.stat().st_size > SCRIPT["MAX_BYTES"]
    SCRIPT["shrink"](path)
    assert path.stat().st_size < 10_000


def test_the_caption_of_the_map_is_that_of_the_measurement_it_was_drawn_from() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "map.py"))
    calibration, origin = (json.loads(script[name].read_text()) for name in ("CALIBRATION", "ORIGIN"))
    text = script["caption"](calibration, origin)
    for page in script["PAGES"]:
        assert script["captioned"](page.read_text(), text) == page.read_text()
        assert f"map.svg)\n\n{text}\n" in page.read_text()
    picture = script["PICTURE"].read_text()
    assert f"Fastest method: {calibration['model']['workload']}" in picture
    assert "nothing pays" in picture
