"""URLs of folders of runs, and the folders on this machine that stand for them.

Runs are always written to a local folder first. For `--runs s3://bucket/prefix` this is the staging folder
`runs/s3/bucket/prefix`; with SAGE_STAGING_DIR set, it is below that folder in place of `runs`. Its file
`.remote.json` has the URL, so that jobs and later commands on the folder know where its runs are uploaded.
A command that reads a URL copies the files that it needs to `runs/.copies/s3/bucket/prefix`.
"""

import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlsplit

from sage.storage.errors import NotWritten, Unreadable
from sage.storage.read import read_json
from sage.storage.schema import Kind
from sage.storage.write import write_json
from sage.validate import Parsed, path, shown

MARKER = ".remote.json"
"""The file of a staging folder that has its URL."""

KIND = Kind(
    name="the address of a folder of runs",
    keys={"url": str},
    remedy="remove it; then `sage sync FOLDER URL` uploads the runs of this folder",
)

ROOT = "SAGE_STAGING_DIR"
"""The variable with the folder that contains the staging folders."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

_given: dict[Path, str] = {}
"""The URLs that this process was given, by the absolute path of the folder that stands for each."""


def is_url(text: str) -> bool:
    """Whether a text is a URL and not a path.

    >>> is_url("s3://bucket/runs"), is_url("runs/s3")
    (True, False)
    """
    return _URL.match(text) is not None


def checked_url(text: str) -> str:
    """Return the URL without trailing slashes.

    >>> checked_url("s3://bucket/runs/")
    's3://bucket/runs'

    Raises:
        ValueError: It has no folder, an empty part, a part such as `..`, a query, or a password.
    """
    if "\0" in text or "\\" in text or not text.isprintable():
        raise ValueError(f"the URL {shown(text)} has a character that no URL of runs may have")
    try:
        found = urlsplit(text)
    except ValueError as error:
        raise ValueError(f"the URL {shown(text)} is not valid: {error}") from error
    if "@" in found.netloc and ":" in found.netloc.rpartition("@")[0]:
        raise ValueError(
            f"the URL of {found.scheme}:// has a password, which would be written to files: leave it out, "
            "and give it by the variables or files that fsspec and the store's package read"
        )
    if found.query or found.fragment:
        raise ValueError(f"the URL {shown(text)} has a ? or #; allowed is SCHEME://BUCKET/FOLDER")
    url = text.rstrip("/")
    parts = url.partition("://")[2].removeprefix("/" if not found.netloc else "").split("/")
    if not all(parts) or not {".", ".."}.isdisjoint(parts):
        raise ValueError(
            f"the URL {shown(text)} has an empty part, or . or ..; allowed is SCHEME://BUCKET/FOLDER"
        )
    return url


def staged(text: str) -> Path:
    """Return the folder on this machine for a folder of runs: a path itself, or a URL's staging folder.

    Raises:
        ValueError: The URL is invalid.
    """
    return _stands_for(text, root())


def copied(text: str) -> Path:
    """Return the folder on this machine for runs that are read: a path itself, or the folder of copies.

    Raises:
        ValueError: The URL is invalid.
    """
    return _stands_for(text, root() / ".copies")


RunsFolder = Annotated[Path, Parsed(staged)]
"""A folder to which runs are written; a URL is replaced by its staging folder."""

ReadFolder = Annotated[Path, Parsed(copied)]
"""A folder of which runs are read; a URL is replaced by the folder of its copies (`remote.fetched`)."""


def root() -> Path:
    """Return the folder that contains the staging folders: $SAGE_STAGING_DIR, else `runs`."""
    return path(os.environ.get(ROOT) or "runs")


def given_url(folder: Path) -> str | None:
    """Return the URL for which this process was given the folder; None if it was given as a path."""
    return _given.get(folder.absolute())


def mark(folder: Path) -> str | None:
    """Return the URL to which the runs of a folder are uploaded, or None.

    If this process was given the URL, the marker is written first, for jobs and later commands.

    Raises:
        ValueError: The marker is damaged.
        sage.storage.NotWritten: (an OSError) The file system refuses to write.
    """
    url = given_url(folder)
    if url is None:
        return marked_url(folder)
    try:
        if marked_url(folder) == url:
            return url
        folder.mkdir(parents=True, exist_ok=True)
    except Unreadable:
        pass  # written again
    except OSError as error:
        raise NotWritten(folder, error) from error
    write_json(folder / MARKER, {"url": url}, KIND)
    return url


def marked_url(folder: Path) -> str | None:
    """Return the URL in a folder's marker, or None if it has none.

    Raises:
        ValueError: The marker is damaged.
    """
    try:
        return checked_url(read_json(folder / MARKER, KIND)["url"])
    except FileNotFoundError:
        return None


def _stands_for(text: str, parent: Path) -> Path:
    if not is_url(text):
        return path(text)
    url = checked_url(text)
    scheme, _, rest = url.partition("://")
    # Without a host, as in file:///folder, the first part is empty.
    parts = [quote(part, safe="@+=,~ ") or "_" for part in rest.split("/")]
    folder = parent.joinpath(scheme.lower(), *parts)
    _given[folder.absolute()] = url
    return folder
