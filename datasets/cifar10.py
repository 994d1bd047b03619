"""CIFAR-10: 60,000 colour images of 32x32 pixels in 10 classes, 10,000 of them for testing."""

import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sage.data.fetch import DataError, checked, download, preparing, sha256_of, unpack
from sage.data.images import Images
from sage.storage import open_regular

_ARRAY_GLOBALS = {
    # The name in the pickles of 2009; numpy has since moved the function.
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class Files(NamedTuple):
    """The files of a data set: the archive, and those within it with their md5 sums."""

    url: str
    md5: str
    folder: str
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]


class CIFAR10(Images):
    """CIFAR-10, from "Learning Multiple Layers of Features from Tiny Images" (Krizhevsky, 2009).

    https://www.cs.toronto.edu/~kriz/cifar.html. Files, URL and md5 sums are those of
    torchvision.datasets; means and standard deviations are those of SIDCo (Abdelmoniem et al., 2021, https://arxiv.org/abs/2101.10761).
    """

    name: ClassVar[str] = "cifar10"
    files: ClassVar[Files] = Files(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=(
            ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
    )
    labels: ClassVar[str] = "labels"
    num_classes: ClassVar[int] = 10
    mean: Sequence[float] = (0.491, 0.482, 0.447)
    std: Sequence[float] = (0.247, 0.243, 0.262)

    def __init__(
        self,
        root: Path,
        *,
        augment: bool = True,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """Read the images under `root`, at `cifar10/cifar-10-batches-py` or `cifar-10-batches-py`.

        Args:
            augment: Crop and flip the training images at random.
            limit_train: Train only on this number of images, the first ones.
            limit_test: Test only on this number of images, the first ones.
        """
        train, test = self._files(root)
        super().__init__(
            train=self._read(train),
            test=self._read(test),
            num_classes=self.num_classes,
            mean=self.mean,
            std=self.std,
            checksums={path.name: sha256_of(path) for path in [*train, *test]},
            augment=augment,
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Download, unpack and verify the files, unless they exist."""
        with preparing(root, cls.name, is_there=partial(cls._files, root)) as is_missing:
            if is_missing:
                folder, url = root / cls.name, cls.files.url
                unpack(download([url], folder / url.rpartition("/")[2], md5=cls.files.md5), folder)
                cls._files(root)

    @classmethod
    def _files(cls, root: Path) -> tuple[list[Path], list[Path]]:
        """Find the training and test files and verify their checksums."""
        folder = root / cls.name / cls.files.folder
        if not folder.is_dir() and (root / cls.files.folder).is_dir():
            folder = root / cls.files.folder
        train, test = (
            [checked(folder / name, md5=md5, dataset=cls.name) for name, md5 in files]
            for files in (cls.files.train, cls.files.test)
        )
        return train, test

    @classmethod
    def _read(cls, paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
        batches = [read_batch(path) for path in paths]
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([batch[cls.labels] for batch in batches])
        return torch.from_numpy(pixels), torch.from_numpy(labels).long()


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that loads only numpy arrays and plain values."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in an array")
        return _ARRAY_GLOBALS[module, name]


def read_batch(path: Path) -> dict[str, Any]:
    """Read one pickled batch; only arrays and plain values are allowed in it."""
    with open_regular(path) as file:
        try:
            batch = _ArrayUnpickler(file, encoding="latin1").load()
        except pickle.UnpicklingError as error:
            raise DataError(f"{path} is not read: {error}") from error
        except Exception as error:  # a damaged pickle may raise any exception
            raise DataError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(batch, dict):
        raise DataError(f"{path} is damaged: it is not a batch of images")
    return batch


DATASET = CIFAR10
