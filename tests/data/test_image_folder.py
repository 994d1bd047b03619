"""Tests of images read from a folder: batches, resume, pre-processing, damaged files and the list."""

import math
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from digit_files import write_digits
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from sage.cli.main import main
from sage.data.dataset import epoch_generator
from sage.data.fetch import DataError
from sage.data.image_list import list_images
from sage.data.image_transforms import (
    NORMALISATIONS,
    Preprocessing,
    crop_box,
    for_testing,
    for_training,
)
from sage.datasets.image_folder import Folder

# N = images, C = channels, H, W = height and width

PREPROCESSINGS: tuple[Preprocessing, ...] = get_args(Preprocessing)


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets with `small`: JPEGs of digits 0 to 2 in three colour modes, 10 + 3 of each."""
    root = tmp_path_factory.mktemp("root")
    write_digits(root / "small")
    return root


def small(root: Path, **options: Any) -> Folder:
    return Folder(root, folder="small", **{"size": 16, **options})


def epoch(data: Folder, rank: int = 0, world_size: int = 1, start: int = 0) -> list[tuple[Tensor, ...]]:
    return list(
        data.train_batches(epoch=1, rank=rank, world_size=world_size, batch_size=4, seed=3, start=start)
    )


def same(left: list[tuple[Tensor, ...]], right: list[tuple[Tensor, ...]]) -> bool:
    return len(left) == len(right) and all(
        a.equal(b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_batches_have_three_channels_the_size_and_the_labels(digit_files: Path) -> None:
    data = small(digit_files)
    assert data.facts == {"num_classes": 3, "channels": 3, "image_size": 16}
    assert set(data.checksums) == {"train", "val"}
    batches = epoch(data)
    assert len(batches) == data.num_steps(batch_size=4, world_size=1) == 7
    for x_BCHW, y_B in batches:
        assert (x_BCHW.shape, x_BCHW.dtype, y_B.dtype) == ((4, 3, 16, 16), torch.float32, torch.int64)
        grey_BCHW = x_BCHW * torch.tensor(NORMALISATIONS["plain"].std).view(3, 1, 1)
        grey_BCHW += torch.tensor(NORMALISATIONS["plain"].mean).view(3, 1, 1)
        assert (grey_BCHW - grey_BCHW.mean(1, keepdim=True)).abs().max() < 20, (
            "grey, whatever the file's mode"
        )
    shares = [list(data.test_batches(rank=rank, world_size=2, batch_size=3)) for rank in range(2)]
    assert torch.cat([y_B for own in shares for _, y_B in own]).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
def test_batches_do_not_depend_on_loaders_resume_or_global_generators(
    digit_files: Path, preprocessing: Preprocessing
) -> None:
    data = small(digit_files, preprocessing=preprocessing)
    alone = epoch(data, rank=1, world_size=2)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    for loaders in (1, 3):
        threaded = small(digit_files, preprocessing=preprocessing, loaders=loaders)
        assert same(alone, epoch(threaded, rank=1, world_size=2))
        assert same(alone[2:], epoch(threaded, rank=1, world_size=2, start=2))
    assert torch.get_rng_state().equal(state)
    assert not same(alone, epoch(data, rank=0, world_size=2))


def test_an_epoch_that_is_left_early_leaves_no_thread(digit_files: Path) -> None:
    import threading

    batches = small(digit_files, loaders=2).train_batches(epoch=0, rank=0, world_size=1, batch_size=2, seed=0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_a_damaged_image_is_named_or_left_out(
    digit_files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(digit_files / "small", tmp_path / "small")
    for split, name in (("train", "03.jpg"), ("val", "11.jpg")):
        path = tmp_path / "small" / split / "digit-1" / name
        path.write_bytes(path.read_bytes()[:-150])
    for loaders in (0, 2):
        data = small(tmp_path, loaders=loaders)
        with pytest.raises(DataError, match=r"digit-1/03.jpg is damaged: .*--data.skip-damaged") as error:
            epoch(data)
        assert "\n" not in str(error.value)
    data = small(tmp_path, skip_damaged=True)
    assert [len(y_B) for _, y_B in epoch(data)] == [4] * 7
    tested = [y_B for _, y_B in data.test_batches(rank=0, world_size=1, batch_size=1)]
    assert torch.cat(tested).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert sorted(path.name for path in data.damaged) == ["03.jpg", "11.jpg"]
    assert caplog.text.count("is left out") == 2
    assert same(epoch(data), epoch(small(tmp_path, skip_damaged=True, loaders=2)))


@settings(max_examples=examples(25))
@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**30))
def test_a_crop_is_inside_the_image_with_an_allowed_area_and_aspect(
    width: int, height: int, seed: int
) -> None:
    left, top, right, bottom = crop_box(width, height, epoch_generator(seed, 0))
    w, h = right - left, bottom - top
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if min(width, height) >= 100 and 3 / 4 <= width / height <= 4 / 3:
        assert 0.07 < w * h / (width * height) <= 1
        assert 0.72 < w / h < 1.39


def test_crops_have_a_uniform_area_and_a_log_uniform_aspect() -> None:
    boxes = [crop_box(1000, 1000, epoch_generator(0, number)) for number in range(400)]
    sizes = np.array([(right - left, bottom - top) for left, top, right, bottom in boxes], float)
    assert sizes.prod(1).min() < 0.12e6
    assert np.log(sizes[:, 0] / sizes[:, 1]).mean() == pytest.approx(0, abs=0.04)
    assert np.log(sizes[:, 0] / sizes[:, 1]).std() == pytest.approx(2 * math.log(4 / 3) / 12**0.5, rel=0.15)


def test_half_of_the_images_are_flipped() -> None:
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, 16:] = 255
    image = Image.fromarray(half)
    flipped = 0
    for number in range(60):
        x_CHW = for_training(image, 8, "plain", epoch_generator(0, number))
        flipped += int(x_CHW[..., 0].mean() > x_CHW[..., -1].mean())
    assert 15 < flipped < 45


def test_validation_takes_the_centre_of_the_resized_image() -> None:
    wide = np.zeros((256, 512, 3), np.uint8)
    wide[16:240, 144:368] = 255
    white = for_testing(Image.fromarray(wide), 224, "byteps")
    expected_C = (255 - torch.tensor((123.68, 116.779, 103.939))) / torch.tensor((58.393, 57.12, 57.375))
    assert white.allclose(expected_C.view(3, 1, 1).expand(3, 224, 224))


def test_byteps_changes_colours_and_plain_does_not() -> None:
    grey = Image.new("RGB", (32, 32), (100, 100, 100))
    pixels = {}
    for which in PREPROCESSINGS:
        x_CHW = for_training(grey, 8, which, epoch_generator(0, 0))
        by = NORMALISATIONS[which]
        pixels[which] = x_CHW * torch.tensor(by.std).view(3, 1, 1) + torch.tensor(by.mean).view(3, 1, 1)
    assert pixels["plain"].allclose(torch.tensor(100.0), atol=1e-3)
    assert (pixels["byteps"] - 100).abs().min() > 0.1
    assert 50 < pixels["byteps"].min() < pixels["byteps"].max() < 160


def test_the_list_is_cached_and_read_again_if_a_file_is_added(digit_files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small" / "train"
    shutil.copytree(digit_files / "small" / "train", folder)
    first = list_images(folder, tmp_path)
    (kept,) = (tmp_path / ".cache").glob("images-*.npz")
    again = list_images(folder, tmp_path)
    assert (again.sha256, again.names, len(again)) == (first.sha256, first.names, 30)
    paths = [first.path(index) for index in range(30)]
    assert paths == sorted(folder.glob("*/*.jpg"))
    kept.write_bytes(kept.read_bytes()[:100])
    assert list_images(folder, tmp_path).sha256 == first.sha256
    shutil.copy(paths[0], folder / "digit-0" / "99.jpg")
    more = list_images(folder, tmp_path)
    assert len(more) == 31
    assert more.sha256 != first.sha256


def test_limits_are_spread_over_the_classes(digit_files: Path) -> None:
    data = small(digit_files, limit_train=6, limit_test=3)
    assert data.train.labels_N[data.train_N.numpy()].tolist() == [0, 0, 1, 1, 2, 2]
    ((_, y_B),) = data.test_batches(rank=0, world_size=1, batch_size=3)
    assert y_B.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="limit_train is 31: give 1 to 30 images"):
        small(digit_files, limit_train=31)


def test_a_missing_tree_is_a_one_line_error(
    digit_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "prepare", "image_folder", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "imagenet/train is missing: expected are train/CLASS/*.jpg and val/CLASS/*.jpg" in line
    assert main(["data", "prepare", "image_folder", str(digit_files), "--folder", "small"]) == 0
    assert main(["data", "prepare", "image_folder", str(digit_files), "--folder", "other"]) == 2
    assert "other/train is missing" in capsys.readouterr().err
    (tmp_path / "imagenet" / "train" / "empty").mkdir(parents=True)
    (tmp_path / "imagenet" / "validation").mkdir()
    with pytest.raises(DataError, match="train/empty has no images"):
        Folder(tmp_path)


def test_the_photographs_of_caltech101_are_listed_and_decoded(shared_data: Path) -> None:
    if not (shared_data / "caltech101-imagefolder").is_dir():
        pytest.skip("no caltech101-imagefolder under SAGE_DATA_DIR")
    data = Folder(shared_data, folder="caltech101-imagefolder", size=64)
    assert (len(data.train), len(data.test), data.facts["num_classes"]) == (800, 200, 20)
    ((x_BCHW, y_B), *_) = data.train_batches(epoch=0, rank=0, world_size=1, batch_size=100, seed=0)
    assert len(y_B.unique()) == 20
    assert x_BCHW.std().item() == pytest.approx(1.2, abs=0.3)
