"""The documentation site: it builds without a warning or a network, and its reference has every part."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from sage import registry
from sage.config import annotations, workloads
from sage.registry import Room
from sage.storage import RESULT

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the recipe of `make docs`, which .ci/run therefore leaves out."""
    folder = tmp_path_factory.mktemp("site")
    (recipe,) = re.findall(r"^docs:.*\n\t(.*--strict)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    done = subprocess.run(
        ["sh", "-c", f"{recipe.replace('$(BIN)', str(Path(sys.executable).parent))} --site-dir {folder}"],
        cwd=ROOT,
        env=os.environ | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "x"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="?((?:https?:)?//[^" >]+)')
    pages = [page for page in site.rglob("*.html") if "source" not in page.relative_to(site).parts]
    assert len(pages) > 30
    for page in pages:
        assert not loads.findall(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:", sheet.read_text(encoding="utf-8")), sheet


def test_the_reference_has_every_part_key_and_command(site: Path) -> None:
    def page(name: str) -> str:
        return (site / "reference" / f"{name}.html").read_text(encoding="utf-8")

    for room in get_args(Room):
        text = page("reducers" if room == "reducers" else "parts")
        for name in registry.names(room):
            assert f'id="{room}-{name}"' in text
            for option in registry.options_of(room, name) if room != "tasks" else ():
                assert f"<code>{option}</code>" in text
    assert all(f"<code>{name}</code>" in page("workloads") for name in workloads())
    assert all(f"<code>{name}</code>" in page("configuration") for name in annotations())
    assert all(f"<code>{key}</code>" in page("records") for key in RESULT.keys)
    for name in ("run", "submit", "status", "report", "doctor", "list", "bench"):
        assert f"<code>sage {name}</code>" in page("command-line")
    for name in ("ddp_hook", "comm_hook", "fsdp_hook", "reduce_model"):
        assert f'id="sage.{name}"' in page("api")
    assert "&lt;!-- generated" not in "".join(map(page, ("reducers", "parts", "records")))


def test_a_page_that_the_code_names_exists() -> None:
    named = re.compile(r"\bdocs/[\w/-]+\.md\b")
    for folder in ("sage", "reducers", "models", "datasets", "jobs", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for page in named.findall(path.read_text(encoding="utf-8")):
                assert (ROOT / page).is_file(), f"{path}: {page}"
