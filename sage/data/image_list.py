"""Lists the images of a folder tree CLASS/FILE, compactly, and keeps the list in the cache of the data sets.

The list is read again if a class is added or removed or the time of modification of a class's folder changes,
which adding, removing and renaming files does. A file that is overwritten in place keeps its old size in the
sha256.
"""
# N = images

import hashlib
import io
import logging
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sage import storage
from sage.data.dataset import cache_root
from sage.data.fetch import DataError

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp")


@dataclass(frozen=True)
class ImageList:
    """Images in the order of their classes' and files' names: about 40 bytes for each.

    `names` has the files' names one after another, `ends_N` where each ends, `labels_N` the number of each
    image's class in `classes`. `sha256` covers the names and sizes of all files, not their content.
    """

    folder: Path
    classes: tuple[str, ...]
    names: bytes
    ends_N: npt.NDArray[np.int64]
    labels_N: npt.NDArray[np.int64]
    sha256: str

    def __len__(self) -> int:
        return len(self.ends_N)

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        start = int(self.ends_N[index - 1]) if index else 0
        name = os.fsdecode(self.names[start : int(self.ends_N[index])])
        return self.folder / self.classes[int(self.labels_N[index])] / name


def list_images(folder: Path, root: Path) -> ImageList:
    """List the images of a folder with one folder for each class, from the cache if it has the list.

    Args:
        root: The folder of the data sets, whose cache keeps the list.

    Raises:
        DataError: if there are no classes, or a class has no image.
    """
    classes = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    if not classes:
        raise DataError(f"{folder} has no folders: expected is one for each class, with its images")
    times = [(folder / name).stat().st_mtime_ns for name in classes]
    key = hashlib.sha256(repr((str(folder.resolve()), classes, times)).encode("utf-8", "surrogateescape"))
    cache = cache_root(root)
    kept = cache and cache / f"images-{key.hexdigest()[:16]}.npz"
    if kept is not None and (found := _cached(kept, folder, classes)) is not None:
        return found
    listed = _listed(folder, classes)
    if kept is not None:
        content = io.BytesIO()
        np.savez(
            content,
            names=np.frombuffer(listed.names, np.uint8),
            ends=listed.ends_N,
            labels=listed.labels_N,
            sha256=np.frombuffer(bytes.fromhex(listed.sha256), np.uint8),
        )
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            storage.write_bytes(kept, content.getvalue())
        except OSError as error:
            # The cache only saves time, so this is not an error.
            log.warning("the list of the images of %s is not cached: %s", folder, error)
    return listed


def _cached(kept: Path, folder: Path, classes: tuple[str, ...]) -> ImageList | None:
    """Read a list from the cache; None if there is none or it is damaged."""
    try:
        with np.load(io.BytesIO(storage.read_bytes(kept)), allow_pickle=False) as content:
            names, ends_N, labels_N, sha256 = (
                content[name] for name in ("names", "ends", "labels", "sha256")
            )
    except (OSError, storage.Unreadable, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if len(ends_N) != len(labels_N) or ends_N[-1:].tolist() != [len(names)]:
        return None
    return ImageList(folder, classes, names.tobytes(), ends_N, labels_N, sha256.tobytes().hex())


def _listed(folder: Path, classes: tuple[str, ...]) -> ImageList:
    names, ends, counts, digest = bytearray(), [], [], hashlib.sha256()
    for name in classes:
        with os.scandir(folder / name) as entries:
            files = sorted(
                (os.fsencode(entry.name), entry.stat().st_size)
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES) and entry.is_file()
            )
        if not files:
            raise DataError(
                f"{folder / name} has no images ({', '.join(SUFFIXES)}): add some, or remove the folder"
            )
        for file, size in files:
            names += file
            ends.append(len(names))
            digest.update(b"%s/%s\0%d\n" % (os.fsencode(name), file, size))
        counts.append(len(files))
    labels_N = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return ImageList(folder, classes, bytes(names), np.array(ends, np.int64), labels_N, digest.hexdigest())
