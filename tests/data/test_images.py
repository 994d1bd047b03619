"""Tests that images are divided among ranks without loss or repetition, and identically after a resume."""

import hashlib
import pickle
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sage.data.dataset import Dataset, data_root, epoch_generator, share
from sage.data.fetch import DataError
from sage.data.images import Images, crop_and_flip
from sage.datasets import digits
from sage.datasets.cifar10 import CIFAR10, Files, read_batch
from sage.datasets.cifar100 import CIFAR100
from sage.datasets.digits import Digits


def numbered(num_train: int = 50, num_test: int = 11, **options: bool) -> Images:
    """Make images whose labels are their indices."""

    def pair(num: int) -> tuple[Tensor, Tensor]:
        return torch.randint(256, (num, 3, 6, 6), generator=epoch_generator(0, num)).byte(), torch.arange(num)

    return Images(
        train=pair(num_train),
        test=pair(num_test),
        num_classes=num_train,
        mean=(0.5, 0.4, 0.3),
        std=(0.1, 0.2, 0.3),
        checksums={},
        **options,
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epochs_shares_are_disjoint_and_leave_out_less_than_a_step(world_size: int) -> None:
    data: Dataset = numbered()
    shares = [
        [
            y_B
            for _, y_B in data.train_batches(epoch=2, rank=rank, world_size=world_size, batch_size=4, seed=1)
        ]
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in shares} == {data.num_steps(batch_size=4, world_size=world_size)}
    seen = torch.cat(list(chain(*shares)))
    assert len(set(seen.tolist())) == len(seen) > 50 - 4 * world_size


def test_a_step_has_the_same_samples_with_any_number_of_ranks() -> None:
    def epoch(rank: int, world_size: int) -> list[Tensor]:
        options = {"world_size": world_size, "batch_size": 12 // world_size}
        return [y_B for _, y_B in numbered().train_batches(epoch=0, rank=rank, seed=0, **options)]

    pairs = zip(epoch(0, 2), epoch(1, 2), strict=True)
    assert all(whole.equal(torch.cat(pair)) for whole, pair in zip(epoch(0, 1), pairs, strict=True))


@pytest.mark.parametrize("augment", [False, True])
def test_an_epoch_resumed_in_the_middle_is_bitwise_identical(augment: bool) -> None:
    data = numbered(augment=augment)

    def epoch(start: int) -> list[tuple[Tensor, ...]]:
        return list(data.train_batches(epoch=3, rank=1, world_size=2, batch_size=4, seed=7, start=start))

    uninterrupted = epoch(0)
    torch.manual_seed(1234)
    assert len(uninterrupted) == 6
    for start in (1, 4, 6):
        resumed = epoch(start)
        assert len(resumed) == 6 - start
        for was, now in zip(uninterrupted[start:], resumed, strict=True):
            assert all(a.equal(b) for a, b in zip(was, now, strict=True))


def test_epochs_seeds_and_batches_draw_differently() -> None:
    keys = [(0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (-1, 0), (2**40, 0)]
    draws = [torch.rand(4, generator=epoch_generator(*key)) for key in keys]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(keys)


@pytest.mark.parametrize("world_size", [1, 3, 4, 13])
def test_the_test_shares_cover_the_test_set_once(world_size: int) -> None:
    data = numbered()
    seen = [
        y_B
        for rank in range(world_size)
        for _, y_B in data.test_batches(rank=rank, world_size=world_size, batch_size=2)
    ]
    assert torch.cat(seen).tolist() == list(range(11))
    lengths = [len(range(100)[share(100, rank=rank, world_size=world_size)]) for rank in range(world_size)]
    assert max(lengths) - min(lengths) <= 1


def test_too_few_samples_for_a_step_are_an_error_with_what_to_lower() -> None:
    with pytest.raises(ValueError, match=r"50 training samples .* 2 ranks x 26 samples: .* at most 25"):
        numbered().num_steps(batch_size=26, world_size=2)
    assert numbered().num_steps(batch_size=25, world_size=2) == 1


def test_pixels_are_normalised_by_channel() -> None:
    data = numbered()
    ((x_BCHW, _),) = data.test_batches(rank=0, world_size=1, batch_size=11)
    pixels = data.test_NCHW / 255
    torch.testing.assert_close(x_BCHW[:, 1], (pixels[:, 1] - 0.4) / 0.2)


def test_a_crop_is_a_shift_of_the_image_or_of_its_mirror() -> None:
    x_BCHW = torch.arange(1, 1 + 64 * 2 * 25).view(64, 2, 5, 5)
    cropped = crop_and_flip(x_BCHW, epoch_generator(0, 0), padding=1)
    padded = torch.nn.functional.pad(x_BCHW, [1] * 4)
    windows = [padded[:, :, top : top + 5, left : left + 5] for top in range(3) for left in range(3)]
    candidates = torch.stack([*windows, *(window.flip(-1) for window in windows)])
    chosen = (candidates == cropped).flatten(2).all(dim=2)
    assert chosen.any(dim=0).all(), "every image is one of the 18"
    assert chosen.any(dim=1).all(), "every one of the 18 is somewhere among 64 images"


@pytest.mark.parametrize("where", ["its file", "its function"])
def test_digits_are_those_of_scikit_learn(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    if where == "its function":
        monkeypatch.setattr(digits, "find_spec", lambda name: None)
    data = Digits(Path())
    theirs: Any = load_digits()
    ours = hashlib.sha256(((theirs.images * 255 / 16).round().astype("u1")).tobytes())
    ours.update(theirs.target.astype("u1").tobytes())
    assert data.checksums == {"sklearn.datasets.load_digits": ours.hexdigest()}


def test_digits_are_split_without_overlap_and_contain_every_class() -> None:
    data = Digits(Path())
    assert data.facts == {"num_classes": 10, "channels": 1, "image_size": 8}
    assert (len(data.train_N), len(data.test_N)) == (1437, 360)
    assert set(data.train_N.tolist()) == set(data.test_N.tolist()) == set(range(10))
    ((x_BCHW, y_B),) = data.train_batches(epoch=0, rank=0, world_size=1, batch_size=1437, seed=0)
    assert (x_BCHW.dtype, y_B.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(
        torch.stack([x_BCHW.mean(), x_BCHW.std()]), torch.tensor([0.0, 1.0]), atol=0.01, rtol=0
    )
    assert data.checksums == Digits(Path(), limit_test=3).checksums


def test_digits_are_enlarged_and_repeated_to_three_channels_on_request() -> None:
    small, large = Digits(Path()), Digits(Path(), size=32, rgb=True)
    assert large.facts == {"num_classes": 10, "channels": 3, "image_size": 32}
    assert large.checksums == small.checksums
    assert large.test_N.equal(small.test_N)
    assert large.test_NCHW.equal(large.test_NCHW[:, :1].expand(-1, 3, -1, -1))
    blocks = torch.nn.functional.avg_pool2d(large.test_NCHW[:, 0].float(), 4)
    inner = (slice(None), slice(1, -1), slice(1, -1))
    error = blocks[inner] - small.test_NCHW[:, 0].float()[inner]
    assert error.abs().mean() < 25, "each 4x4 block is about its pixel, of 0 to 255"
    ((x_BCHW, _),) = large.test_batches(rank=0, world_size=1, batch_size=360)
    assert x_BCHW.shape == (360, 3, 32, 32)


def test_a_limit_keeps_the_first_images_and_is_checked() -> None:
    whole, part = Digits(Path()), Digits(Path(), limit_train=64, limit_test=32)
    assert part.train_NCHW.equal(whole.train_NCHW[:64])
    assert part.test_N.equal(whole.test_N[:32])
    with pytest.raises(ValueError, match="limit_train is 0: give 1 to 1437 images"):
        Digits(Path(), limit_train=0)


def test_cifar10_is_complete_and_balanced(shared_data: Path) -> None:
    data = CIFAR10(shared_data)
    assert data.facts == {"num_classes": 10, "channels": 3, "image_size": 32}
    assert data.train_N.bincount().tolist() == [5000] * 10
    assert data.test_N.bincount().tolist() == [1000] * 10
    assert data.train_NCHW.shape == (50000, 3, 32, 32)
    assert set(data.checksums) == {*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"}
    ((x_BCHW, _),) = data.test_batches(rank=0, world_size=1, batch_size=10000)
    torch.testing.assert_close(x_BCHW.mean((0, 2, 3)), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(x_BCHW.std((0, 2, 3)), torch.ones(3), atol=0.03, rtol=0)


def test_cifar10_is_found_without_a_folder_of_its_own_and_not_fetched_again(shared_data: Path) -> None:
    CIFAR10.prepare(shared_data / "cifar10")
    assert CIFAR10(shared_data / "cifar10", limit_test=7).test_N.shape == (7,)


def test_prepare_fetches_checks_and_unpacks(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    for name, num in {"train": 4, "test": 2}.items():
        batch = {"data": [[number] * 3072 for number in range(num)], "fine_labels": [*range(num)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    archive = Path(shutil.make_archive(str(tmp_path / "small"), "gztar", tmp_path, "small"))

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    class Small(CIFAR100):
        files = Files(
            url=archive.as_uri(),
            md5=md5(archive),
            folder="small",
            train=(("train", md5(folder / "train")),),
            test=(("test", md5(folder / "test")),),
        )

    root = tmp_path / "root"
    Small.prepare(root)
    archive.unlink()
    Small.prepare(root)
    data = Small(root)
    assert data.facts["num_classes"] == 100
    assert data.train_N.tolist() == data.train_NCHW[:, 2, 31, 31].tolist() == [0, 1, 2, 3]
    in_five_digits = Small(root, preprocessing="byteps")
    (x_BCHW, _), *_ = in_five_digits.test_batches(rank=0, world_size=1, batch_size=2)
    pixels_BCHW = x_BCHW * torch.tensor([0.26733, 0.25644, 0.27615]).view(3, 1, 1)
    pixels_BCHW += torch.tensor([0.50708, 0.48655, 0.44092]).view(3, 1, 1)
    assert (255 * pixels_BCHW).allclose(data.test_NCHW.float(), atol=1e-3)
    (root / "cifar100" / "small" / "test").write_bytes(b"damaged")
    Small.prepare(root)
    assert Small(root).test_N.tolist() == [0, 1]


@pytest.mark.parametrize("cifar", [CIFAR10, CIFAR100])
def test_a_missing_or_damaged_file_is_refused_with_the_command_that_fetches_it(
    tmp_path: Path, cifar: type[CIFAR10]
) -> None:
    with pytest.raises(DataError, match=rf"is missing: run `sage data prepare {cifar.name}`"):
        cifar(tmp_path)
    first = tmp_path / cifar.files.folder / cifar.files.train[0][0]
    first.parent.mkdir()
    first.write_bytes(pickle.dumps({"data": [], cifar.labels: []}))
    with pytest.raises(
        DataError, match=rf"{first.name} is damaged, .*: run `sage data prepare {cifar.name}`"
    ):
        cifar(tmp_path)


def test_a_pickle_that_names_anything_but_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": print}))
    with pytest.raises(DataError, match=r"builtins.print is not allowed in an array"):
        read_batch(path)


def test_the_data_root_is_the_given_one_else_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGE_DATA_DIR", raising=False)
    assert data_root() == Path("data")
    monkeypatch.setenv("SAGE_DATA_DIR", "/elsewhere")
    assert data_root() == Path("/elsewhere")
    assert data_root(Path("here")) == Path("here")
