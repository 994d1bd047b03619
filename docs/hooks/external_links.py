"""A hook of mkdocs: lists the links of the site that lead elsewhere, and checks their form.

The list is the file `external-links.txt` of the site. No network is used, unless the variable
`SAGE_CHECK_LINKS` is 1: then each address is requested, and one that does not answer is a warning, which
`make docs` treats as an error.
"""

import html
import logging
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

HREF = re.compile(r"""<a\b[^>]*?\bhref=["']?([a-zA-Z][a-zA-Z+.-]*:[^"'>]*)""")
LOCAL = {"localhost", "127.0.0.1"}
SECONDS = 20.0

log = logging.getLogger("mkdocs.hooks.external_links")
_PAGES: dict[str, set[str]] = {}
"""The pages that have each address."""


def on_pre_build(config: MkDocsConfig) -> None:
    """Forget the links of an earlier build."""
    _PAGES.clear()


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Collect the links of a page."""
    for link in HREF.findall(content):
        _PAGES.setdefault(html.unescape(link), set()).add(page.file.src_uri)


def on_post_build(config: MkDocsConfig) -> None:
    """Write the list, and warn of each address that is wrong."""
    lines = [f"{link} {' '.join(sorted(pages))}\n" for link, pages in sorted(_PAGES.items())]
    Path(config.site_dir, "external-links.txt").write_text("".join(lines), encoding="utf-8")
    for link, pages in sorted(_PAGES.items()):
        found = fault(link)
        if not found and os.environ.get("SAGE_CHECK_LINKS") == "1":
            found = unanswered(link)
        if found:
            log.warning("the link %s (on %s) %s", link, ", ".join(sorted(pages)), found)


def fault(link: str) -> str:
    """What is wrong with the form of an address; "" if nothing is.

    >>> fault("https://arxiv.org/abs/1905.13727")
    ''
    >>> fault("http://arxiv.org"), fault("https://arxiv"), fault("https://arxiv.org/abs/1.")
    ('is not https', 'has no host name', 'ends with punctuation')
    """
    if re.search(r"[^!-~]", link):
        return "has a space, or a character that is not ASCII"
    try:
        parts = urlsplit(link)
        host = parts.hostname or ""
    except ValueError as error:
        return f"cannot be parsed: {error}"
    if host in LOCAL:
        return ""
    if parts.scheme != "https":
        return "is not https"
    if not re.fullmatch(r"(?:[a-z0-9-]+\.)+[a-z]{2,}", host):
        return "has no host name"
    return "ends with punctuation" if link[-1] in ".,;:!?" else ""


def unanswered(link: str) -> str:
    """Why a request of an address fails; "" if it is answered, also if it is refused to programs."""
    request = urllib.request.Request(link, headers={"User-Agent": "Mozilla/5.0 (link check)"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code in (401, 403, 429) else f"is answered with {error.code}"
    except OSError as error:
        return f"is not answered: {error}"
