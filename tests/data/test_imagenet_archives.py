"""Tests that ImageNet's official archives are unpacked by class; the archives here are made, and small."""

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from sage.cli.main import main
from sage.data import imagenet_archives
from sage.data.imagenet_archives import ARCHIVES
from sage.datasets.image_folder import Folder

WNIDS = ("n01440764", "n02119789", "n03000247")
LABELS = (3, 1, 2, 1)
"""The numbers of the classes of the validation images."""


def jpeg(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 12), (grey, grey, grey)).save(file, "JPEG")
    return file.getvalue()


def tar(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as made:  # type: ignore[call-overload]
        for name, each in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(each)
            made.addfile(member, io.BytesIO(each))
    return content.getvalue()


def devkit() -> bytes:
    rows = [(4, "n00000001", 3), *((number, wnid, 0) for number, wnid in enumerate(WNIDS, 1))]
    synsets = np.array(rows, [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("num_children", "f8")])
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{label}\n" for label in LABELS).encode()
    inside = "ILSVRC2012_devkit_t12/data"
    files = {f"{inside}/meta.mat": meta.getvalue(), f"{inside}/ILSVRC2012_validation_ground_truth.txt": truth}
    return tar({"ILSVRC2012_devkit_t12/readme.txt": b"made", **files}, "w:gz")


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of archives in the layout of the official ones, whose sums take the place of theirs."""
    folder = tmp_path / "archives"
    folder.mkdir()
    classes = {
        f"{wnid}.tar": tar({f"{wnid}_{each}.JPEG": jpeg(10 * each + at) for each in range(4)})
        for at, wnid in enumerate(WNIDS)
    }
    images = {f"ILSVRC2012_val_{number:08}.JPEG": jpeg(200 + number) for number in range(1, 5)}
    contents = {"train": tar(classes), "val": tar(images), "devkit": devkit()}
    for split, (name, _) in list(ARCHIVES.items()):
        replace(folder, split, name, contents[split], monkeypatch)
    return folder


def replace(folder: Path, split: str, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).write_bytes(content)
    monkeypatch.setitem(ARCHIVES, split, (name, hashlib.md5(content).hexdigest()))


def prepare(root: Path, archives: Path) -> int:
    return main(["data", "prepare", "image_folder", str(root), "--archives", str(archives)])


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.JPEG"))


def test_training_images_are_unpacked_by_class_and_validation_images_sorted_by_the_development_kit(
    archives: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    assert prepare(root, archives) == 0
    data = Folder(root)
    assert data.train.classes == data.test.classes == WNIDS
    assert tree(root / "imagenet" / "val") == [
        *(f"n01440764/ILSVRC2012_val_{number:08}.JPEG" for number in (2, 4)),
        "n02119789/ILSVRC2012_val_00000003.JPEG",
        "n03000247/ILSVRC2012_val_00000001.JPEG",
    ]
    assert len(tree(root / "imagenet" / "train")) == 12
    assert sorted(os.listdir(root / "imagenet")) == [".imagenet.lock", "train", "val"]
    for path in archives.iterdir():
        path.unlink()
    assert prepare(root, archives) == 0, "the images are there, so nothing is unpacked"


def test_an_interrupted_preparation_goes_on_with_the_class_that_was_not_complete(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    unpack = imagenet_archives._unpack_val

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(imagenet_archives, "_unpack_val", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imagenet_archives.unpack_imagenet(archives, root / "imagenet")
    inside = root / "imagenet" / ".unpacking"
    (root / "imagenet" / "train").rename(inside / "train")
    kept = inside / "train" / WNIDS[0]
    (kept / f"{WNIDS[0]}_0.JPEG").write_bytes(jpeg(99))
    (inside / "train" / WNIDS[1]).rename(inside / "train" / f".{WNIDS[1]}.partial")
    monkeypatch.setattr(imagenet_archives, "_unpack_val", unpack)
    assert prepare(root, archives) == 0
    assert len(tree(root / "imagenet" / "train")) == 12
    assert (root / "imagenet" / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG").read_bytes() == jpeg(99)


@pytest.mark.parametrize(
    ("split", "content", "error"),
    [
        ("train", tar({"n01440764.tar": b"x" * 700}), "img_train.tar is damaged"),
        ("train", tar({"n01440764.tar": tar({})}), "is not complete: it lacks n02119789.tar and 1 others"),
        ("train", tar({"n09999999.tar": tar({})}), "is not ImageNet's: it has 'n09999999.tar', which is no"),
        ("val", tar({"cat.JPEG": b""}), "img_val.tar is not ImageNet's: it has 'cat.JPEG'"),
        ("val", tar({"ILSVRC2012_val_00000001.JPEG": b""}), "has 1 images, but the development kit has"),
        ("devkit", tar({"readme": b""}), "devkit_t12.tar.gz is not ImageNet's: it lacks data/meta.mat"),
        ("devkit", b"\x1f\x8b damaged", "devkit_t12.tar.gz is damaged"),
    ],
)
def test_an_archive_that_is_not_imagenets_is_named_in_one_line(
    archives: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    split: str,
    content: bytes,
    error: str,
) -> None:
    replace(archives, split, ARCHIVES[split][0], content, monkeypatch)
    assert prepare(tmp_path / "root", archives) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert error in line
    assert not (tmp_path / "root" / "imagenet" / "val").exists()


def test_a_missing_or_damaged_archive_is_named_with_where_to_get_it(
    archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archives / ARCHIVES["train"][0]
    path.write_bytes(path.read_bytes() + b"more")
    assert prepare(tmp_path / "root", archives) == 2
    assert "img_train.tar is damaged, its md5 is" in capsys.readouterr().err
    path.unlink()
    assert prepare(tmp_path / "root", archives) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ILSVRC2012_img_train.tar is missing: download it from https://image-net.org" in line
    assert line.endswith("or give another --archives")


def test_record_files_of_mxnet_are_refused_with_what_converts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "train.rec").touch()
    assert main(["data", "prepare", "image_folder", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train.rec is in MXNet's RecordIO, which SAGE cannot read: convert it by mxnet.recordio" in line
