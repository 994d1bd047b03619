"""Tests of the documentation site: it builds without warnings or network; its reference has every part."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from sage import registry
from sage.config import annotations, workloads
from sage.predict.calibration_schema import CALIBRATION, SAMPLES
from sage.registry import PartKind
from sage.storage import RESULT

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the recipe of `make docs`, which .ci/run therefore omits."""
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


def test_a_page_loads_nothing_from_other_hosts(site: Path) -> None:
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

    for kind in get_args(PartKind):
        text = page("reducers" if kind == "reducers" else "parts")
        for name in registry.names(kind):
            assert f'id="{kind}-{name}"' in text
            for option in registry.options_of(kind, name) if kind != "tasks" else ():
                assert f"<code>{option}</code>" in text
    assert all(f"<code>{name}</code>" in page("workloads") for name in workloads())
    assert all(f"<code>{name}</code>" in page("configuration") for name in annotations())
    assert all(f"<code>{key}</code>" in page("records") for key in RESULT.keys)
    for name in ("run", "submit", "status", "report", "doctor", "list", "bench", "calibrate", "predict"):
        assert f"<code>sage {name}</code>" in page("command-line")
    calibrate = (site / "how-to" / "calibrate.html").read_text(encoding="utf-8")
    assert all(f"<code>{key}</code>" in calibrate for key in (*CALIBRATION.keys, *SAMPLES.keys))
    for name in ("ddp_hook", "comm_hook", "fsdp_hook", "reduce_model", "shard_comm", "ledger"):
        assert f'id="sage.{name}"' in page("api")
    assert "&lt;!-- generated" not in "".join(map(page, ("reducers", "parts", "records")))


def test_the_table_of_reducers_has_the_payload_that_the_ledger_counts(site: Path) -> None:
    text = (site / "reference" / "reducers.html").read_text(encoding="utf-8")
    table = text.partition('id="options-and-formulas"')[0]
    rows = dict(
        re.findall(r"<tr>\s*<td><code>(\w+)</code></td>\s*<td>.*?</td>\s*<td>(.*?)</td>", table, re.DOTALL)
    )
    assert set(registry.names("reducers")) == set(rows)
    for name in registry.names("reducers"):
        assert re.match(r"[\d,]+ \([\d.]+ %\): \w+ [\d,]+", rows[name]), name
    # 100,000 elements: 4 bytes of each; 4 for value and index of 1 %; 1 bit of each, and a scale of 4 bytes.
    assert rows["exact"].startswith("400,000 (100 %)")
    assert rows["topk"].startswith("8,000 (2 %)")
    assert rows["efsignsgd"].startswith("12,504 (3.13 %)")
    for name in registry.names("reducers"):
        (section,) = re.findall(rf'<h3 id="reducers-{name}">(.*?)(?:<h3|</article>)', text, re.DOTALL)
        assert re.search("[Pp]ayload|bytes", section), name


def test_every_external_link_is_listed_and_has_the_right_form(site: Path) -> None:
    links = [line.split(" ")[0] for line in (site / "external-links.txt").read_text().splitlines()]
    assert len(links) > 5
    assert any(link.startswith("https://arxiv.org/abs/") for link in links)
    hook = runpy.run_path(str(ROOT / "docs" / "hooks" / "external_links.py"))
    assert [link for link in links if hook["fault"](link)] == []
    for wrong in (
        "http://arxiv.org/abs/1",
        "https://arxiv",
        "https://a b.org",
        "https://a.org/x,",
        "https://[a",
    ):
        assert hook["fault"](wrong), wrong


def test_a_link_of_the_wrong_form_is_a_warning_on_its_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook = runpy.run_path(str(ROOT / "docs" / "hooks" / "external_links.py"))
    page = SimpleNamespace(file=SimpleNamespace(src_uri="how-to/x.md"))
    hook["on_page_content"](
        '<a class="x" href="http://a.org/b&amp;c">b</a> <a href="y.html">y</a>', page, None, None
    )
    hook["on_post_build"](SimpleNamespace(site_dir=str(tmp_path)))
    assert (tmp_path / "external-links.txt").read_text() == "http://a.org/b&c how-to/x.md\n"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == "the link http://a.org/b&c (on how-to/x.md) is not https"


def test_a_page_that_the_code_names_exists() -> None:
    named = re.compile(r"\bdocs/[\w/-]+\.md\b")
    for folder in ("sage", "reducers", "models", "datasets", "jobs", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for page in named.findall(path.read_text(encoding="utf-8")):
                assert (ROOT / page).is_file(), f"{path}: {page}"
