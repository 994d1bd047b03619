"""The page of the published tables has every figure, and the status of those that are not verified."""

import runpy
from pathlib import Path

from sage.report.published.files import find, sources
from sage.report.published.text import value

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_has_every_table_and_figure_of_the_files() -> None:
    hook = runpy.run_path(str(ROOT / "docs" / "hooks" / "published.py"))
    page = (ROOT / "docs" / "explanation" / "published.md").read_text(encoding="utf-8")
    assert page.count(hook["MARK"]) == 1
    text = hook["on_page_markdown"](page, None, None, None)
    assert hook["MARK"] not in text
    for name in sources():
        source = find(name)
        assert f"{{ #{name} }}" in text
        for table in source.tables:
            _, _, section = text.partition(f"{{ #{name}-{table.name} }}")
            section, _, _ = section.partition("\n##")
            assert all(f"| {value(row)} |" in section for row in table.rows)
            assert all(f"| {row.status} |" in section for row in table.rows if row.status != "verified")


def test_other_pages_stay_as_they_are() -> None:
    hook = runpy.run_path(str(ROOT / "docs" / "hooks" / "published.py"))
    assert hook["on_page_markdown"]("# A page", None, None, None) == "# A page"
