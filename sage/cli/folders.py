"""Folders of runs as arguments: paths, or URLs."""

from pathlib import Path

from ..storage.remote.url import ReadFolder as ReadFolder
from ..storage.remote.url import RunsFolder as RunsFolder
from ..storage.remote.url import given_url


def fetched(folder: Path) -> Path:
    """Return the folder; if it stands for a URL that is read, after its files have been copied to it.

    Raises:
        ValueError: if no run is at the URL, or the package of the store is missing.
        OSError: if the store does not answer, or refuses.
    """
    if (url := given_url(folder)) is not None:
        from ..storage.remote.copies import fetch

        fetch(url, folder)
    return folder
