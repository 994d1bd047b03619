"""A folder at a URL: lists, reads, writes and removes its files through fsspec, with one-line errors."""

import errno
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sage.exit_status import message
from sage.storage.remote.url import given_url, marked_url
from sage.validate import shown

PACKAGES = {
    "s3": "sage-bench[s3]",
    "s3a": "sage-bench[s3]",
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
}
"""The stores without folders, and what pip installs for each. In other stores a file needs its folder."""

OPTIONS: dict[str, dict[str, Any]] = {
    scheme: {
        "config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}},
        "max_concurrency": 2,
    }
    for scheme in ("s3", "s3a")
}
"""Options of fsspec's classes: a silent store is given up soon, and few parts of a file are sent at once."""


class StoreError(OSError):
    """Raised if a store does not do what it is asked; the message has the URL and the reason.

    Its `errno` is EACCES if the same command would fail again, so that its exit status is 2.
    """

    @property
    def is_permanent(self) -> bool:
        """Whether credentials are missing or wrong, or the store has no such bucket."""
        return self.errno == errno.EACCES


def check(folder: Path) -> None:
    """Refuse a folder of runs whose URL has a scheme that fsspec does not know, or whose package is missing.

    A folder without a URL is accepted. Nothing is imported but fsspec's table of schemes.

    Raises:
        ValueError: The message says what to install.
    """
    url = given_url(folder) or marked_url(folder)
    if url is not None:
        check_url(url)


def check_url(url: str) -> None:
    """Refuse a URL as `check` does."""
    from fsspec.registry import known_implementations, registry

    scheme = url.partition("://")[0].lower()
    known = known_implementations.get(scheme)
    if known is None and scheme not in registry:
        raise ValueError(
            f"fsspec knows no scheme {scheme}:// (of {shown(url)}); it knows file, gs, s3, sftp and others"
        )
    package = known["class"].partition(".")[0] if known is not None and scheme not in registry else "fsspec"
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{scheme}:// needs the package {package}, which is not installed: "
            f"pip install '{PACKAGES.get(scheme, package)}'"
        )


class Store:
    """The files below a URL, by their paths relative to it.

    Each method raises `StoreError`. Credentials come from where fsspec's class for the scheme finds them:
    for s3, from the variables and files of the AWS tools, and a server from AWS_ENDPOINT_URL.
    """

    def __init__(self, url: str) -> None:
        check_url(url)
        self.url = url
        self._scheme = url.partition("://")[0].lower()
        with _named(url):
            import fsspec.core

            options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
            options |= OPTIONS.get(self._scheme, {})
            self._files, root = fsspec.core.url_to_fs(url, **options)
            self._root: str = root.rstrip("/")

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return the length in bytes of every file, by its path; names that `is_inside` refuses are left out.

        Args:
            below: A folder; only its files are returned.
        """
        with _named(self.url):
            try:
                found = self._files.find(self._path(below), detail=True)
            except FileNotFoundError:  # no such folder, in a store with folders
                if self._scheme in PACKAGES:
                    raise
                return {}
        prefix, start = self._path("") + "/", self._path(below) + "/"
        sizes = {
            name.removeprefix(prefix): int(info.get("size") or 0)
            for name, info in found.items()
            if name.startswith(start) and info.get("type", "file") == "file"
        }
        return {name: size for name, size in sizes.items() if is_inside(name)}

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with _named(f"{self.url}/{name}"):
            content: bytes = self._files.cat_file(self._path(name))
        return content

    def copy(self, name: str, path: Path) -> None:
        """Write the content of a file to a new local file."""
        with _named(f"{self.url}/{name}"):
            self._files.get_file(self._path(name), str(path))

    def write(self, name: str, content: bytes | Path) -> None:
        """Write a file: these bytes, or the content of a local file."""
        target = self._path(name)
        with _named(f"{self.url}/{name}"):
            if self._scheme not in PACKAGES:
                self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
            if isinstance(content, Path):
                self._files.put_file(str(content), target)
            else:
                self._files.pipe_file(target, content)

    def remove(self, name: str) -> None:
        """Remove a file; one that is missing is accepted."""
        with _named(f"{self.url}/{name}"):
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return

    def _path(self, name: str) -> str:
        assert not name or is_inside(name), name
        return f"{self._root}/{name}" if name else self._root


def is_inside(name: str) -> bool:
    r"""Whether a name from a listing is a path that stays below its folder, on any system.

    >>> is_inside("run/result.json"), is_inside("run/../../.bashrc"), is_inside("/etc/passwd")
    (True, False, False)
    """
    if not name.isprintable() or "\\" in name or len(name) > 1000:
        return False
    parts = name.split("/")
    return all(parts) and {".", ".."}.isdisjoint(parts)


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Turn any error of fsspec and of the store's package into a `StoreError` that has the URL.

    The packages raise errors of many types, which they do not document.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(_number(error), _reason(error), url) from error


def _number(error: Exception) -> int:
    """Return EACCES for an error that comes again, ETIMEDOUT for others."""
    permanent = isinstance(error, PermissionError | FileNotFoundError | ImportError)
    return errno.EACCES if permanent or type(error).__name__ in _CREDENTIALS else errno.ETIMEDOUT


def _reason(error: Exception) -> str:
    text = message(error)
    if isinstance(error, ImportError):
        return f"its package cannot be imported: {text}"
    if type(error).__name__ in _CREDENTIALS:
        return f"{text.rstrip('.')}; give credentials as the store's tools expect them"
    return text


_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError")
"""Errors of botocore; their classes are not imported, because other stores have none of them."""
