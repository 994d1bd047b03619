"""Unpacks ImageNet's official archives (ILSVRC 2012) into train/CLASS and val/CLASS.

The archive of the training images has one tar for each class. That of the validation images has no classes:
the development kit has the class of each image, and the WordNet identifier of each class. Names and md5 sums
are those of torchvision.datasets.ImageNet.
"""

import io
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from sage.data.fetch import DataError, checked

ARCHIVES = {
    "train": ("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e"),
    "val": ("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622"),
    "devkit": ("ILSVRC2012_devkit_t12.tar.gz", "fa75699e90414af021442c21a62c3abf"),
}
"""Name and md5 of the archives `train`, `val` and `devkit`."""

_UNPACKING = ".unpacking"
"""Folder of the classes unpacked so far; `train` and `val` are moved out of it when they are complete."""


def unpack_imagenet(archives: Path, folder: Path) -> None:
    """Unpack the three archives into `folder`; if it is called again after an interruption, it goes on.

    Classes of the training images that were unpacked completely are not unpacked again. A folder `train` or
    `val` that exists is left as it is.

    Args:
        archives: The folder of the archives.
        folder: Receives `train` and `val`.

    Raises:
        DataError: if an archive is missing, damaged or not ImageNet's.
    """
    paths = {split: archives / name for split, (name, _) in ARCHIVES.items()}
    for path in paths.values():
        _checked(path, None)
    inside = folder / _UNPACKING
    classes, labels = _read_devkit(_checked(paths["devkit"], ARCHIVES["devkit"][1]))
    if not (folder / "train").is_dir():
        _unpack_train(_checked(paths["train"], ARCHIVES["train"][1]), inside / "train", set(classes.values()))
        (inside / "train").rename(folder / "train")
    if not (folder / "val").is_dir():
        wnids = [classes[label] for label in labels]
        _unpack_val(_checked(paths["val"], ARCHIVES["val"][1]), inside / "val", wnids)
        (inside / "val").rename(folder / "val")
    shutil.rmtree(inside, ignore_errors=True)


def _checked(path: Path, md5: str | None) -> Path:
    remedy = "download it from https://image-net.org (ILSVRC 2012, tasks 1 and 2), or give another --archives"
    return checked(path, md5=md5, remedy=remedy)


def _read_devkit(path: Path) -> tuple[Mapping[int, str], list[int]]:
    """Read the WordNet identifier of each class by its number, and the class of each validation image."""
    from scipy.io import loadmat

    with _opened(path) as tar:
        files = {
            PurePosixPath(member.name).name: _file(tar, member)
            for member in tar
            if member.name.endswith(("/data/meta.mat", "/data/ILSVRC2012_validation_ground_truth.txt"))
        }
        if len(files) != 2:
            raise DataError(f"{path} is not ImageNet's: it lacks data/meta.mat, or the classes of val")
        labels = [int(line) for line in files["ILSVRC2012_validation_ground_truth.txt"].read().split()]
        synsets = loadmat(io.BytesIO(files["meta.mat"].read()), squeeze_me=True)["synsets"]
    # The rows with children are classes above those of the images.
    return {
        int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0
    }, labels


def _unpack_train(path: Path, into: Path, wnids: set[str]) -> None:
    """Unpack the tar of each class into a folder of the class's name."""
    into.mkdir(parents=True, exist_ok=True)
    with _opened(path) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if name.suffix != ".tar" or name.stem not in wnids:
                raise DataError(f"{path} is not ImageNet's: it has {member.name!r}, which is no class")
            if (into / name.stem).is_dir():
                continue
            partial = into / f".{name.stem}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            with _opened(path, _file(tar, member)) as images:
                images.extractall(partial, filter="data")
            partial.rename(into / name.stem)
    if missing := wnids - {entry.name for entry in into.iterdir()}:
        raise DataError(f"{path} is not complete: it lacks {min(missing)}.tar and {len(missing) - 1} others")


def _unpack_val(path: Path, into: Path, wnids: list[str]) -> None:
    """Unpack each image into the folder of its class.

    Args:
        wnids: The class of each image, in the order of the numbers in the images' names.
    """
    shutil.rmtree(into, ignore_errors=True)
    count = 0
    with _opened(path) as tar:
        for member in tar:
            found = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", PurePosixPath(member.name).name)
            number = int(found[1]) if found else 0
            if not 1 <= number <= len(wnids):
                raise DataError(f"{path} is not ImageNet's: it has {member.name!r}")
            member.name = PurePosixPath(member.name).name
            (into / wnids[number - 1]).mkdir(parents=True, exist_ok=True)
            tar.extract(member, into / wnids[number - 1], filter="data")
            count += 1
    if count != len(wnids):
        raise DataError(f"{path} has {count} images, but the development kit has the classes of {len(wnids)}")


@contextmanager
def _opened(path: Path, stream: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """Open a tar, or one within it; reading a damaged one raises a DataError that names the archive."""
    try:
        with tarfile.open(path) if stream is None else tarfile.open(fileobj=stream) as tar:
            yield tar
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} is damaged: {error}: download it again") from error


def _file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    if file is None:
        raise DataError(f"{tar.name!s} is not ImageNet's: {member.name!r} is no file")
    return file
