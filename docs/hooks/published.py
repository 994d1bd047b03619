"""A hook of mkdocs: writes the published tables from jobs/published/*.toml, when the site is built.

A line `<!-- published -->` of a page is replaced by a section for each source.
"""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sage.report.published import files as published_files  # noqa: E402
from sage.report.published import text as published_text  # noqa: E402

MARK = "<!-- published -->"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the mark of a page."""
    return markdown.replace(MARK, tables()) if MARK in markdown else markdown


def tables() -> str:
    """The sections of all sources, with all figures."""
    found = [published_files.read(path) for path in published_files.sources().values()]
    return "\n\n".join(map(published_text.markdown, found))
