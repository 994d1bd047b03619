"""A hook of mkdocs: includes pages from outside docs/, and copies the files that pages link to."""

import re
from collections.abc import Callable
from os.path import dirname, normpath, relpath
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
INCLUDED = {
    "explanation/benchmarks.md": "benchmarks/README.md",
    "about/contributing.md": "CONTRIBUTING.md",
    "about/changelog.md": "CHANGELOG.md",
}
"""Pages of the site whose text is elsewhere in the repository."""
PAGES = {source: uri for uri, source in INCLUDED.items()} | {"README.md": "index.md"}
SHOWN = {".csv", ".html", ".json", ".svg", ".png", ".toml"}
"""Endings of files that a browser shows as they are; the copies of others end with .txt."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the included pages, and every file of the repository that a page links to."""
    for uri, source in INCLUDED.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    for page in list(files.documentation_pages()):
        for _, _, link, _ in LINK.findall(page.content_string):
            source = _source(page.src_uri, link)
            if source is not None and (ROOT / source).is_file() and _copy(source) not in files.src_uris:
                files.append(File.generated(config, _copy(source), abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links into the repository into links within the site; of a link to a folder its text stays."""
    blocks = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    blocks[::2] = [LINK.sub(_rewriter(page.file.src_uri), text) for text in blocks[::2]]
    return "".join(blocks)


def _rewriter(uri: str) -> Callable[[re.Match[str]], str]:
    def rewrite(found: re.Match[str]) -> str:
        image, text, link, fragment = found.groups(default="")
        if re.match(r"[a-z]+:", link):
            return found[0]
        target = _target(uri, link)
        if target == "README.md":  # the site has its own first page, with other headings
            fragment = ""
        if target in PAGES:
            to = PAGES[target]
        elif target.startswith("docs/"):
            to = target.removeprefix("docs/")
        elif (ROOT / target).is_dir():
            return text
        else:  # mkdocs says so where there is no such file
            to = _copy(target)
        return f"{image}[{text}]({relpath(to, dirname(uri) or '.')}{fragment})"

    return rewrite


def _source(uri: str, link: str) -> str | None:
    """The path in the repository that a link of a page leads to; None where that is a page of the site."""
    if re.match(r"[a-z]+:", link):
        return None
    target = _target(uri, link)
    return None if target in PAGES or target.startswith("docs/") else target


def _target(uri: str, link: str) -> str:
    """The path in the repository that a link of a page leads to."""
    return normpath(f"{dirname(INCLUDED.get(uri, f'docs/{uri}'))}/{link}").lstrip("/")


def _copy(source: str) -> str:
    """Where the site has a copy of a file."""
    return f"source/{source}" + ("" if Path(source).suffix in SHOWN else ".txt")
