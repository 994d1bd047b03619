"""Digits: 1,797 handwritten digits of 8x8 pixels from scikit-learn, without any download."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch.nn import functional

from sage.data.images import Images
from sage.validate import Range

_NUM_TRAIN = 1437


class Digits(Images):
    """Optical recognition of handwritten digits (Alpaydin and Kaynak, 1998), the subset in scikit-learn.

    https://doi.org/10.24432/C50P49; 1,437 images are for training and 360 for testing.
    """

    later: ClassVar[tuple[str, ...]] = ("size", "rgb")

    def __init__(
        self,
        root: Path,
        *,
        size: Annotated[int, Range(8, 512)] = 8,
        rgb: bool = False,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """Read the digits from scikit-learn; `root` is not used.

        Args:
            size: Height and width, to which the 8x8 pixels are interpolated (bilinear).
            rgb: Repeat the grey channel three times, for networks that take images in colour.
            limit_train: Train only on this number of images, the first ones.
            limit_test: Test only on this number of images, the first ones.
        """
        digits = _read()
        images = (digits[:, :-1].reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
        labels = digits[:, -1].astype(np.uint8)
        # numpy guarantees that the stream of RandomState never changes.
        order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
        x_NCHW = torch.from_numpy(images)[order, None]
        if size != 8:
            x_NCHW = functional.interpolate(x_NCHW, size=(size, size), mode="bilinear")
        if rgb:
            x_NCHW = x_NCHW.repeat(1, 3, 1, 1)
        y_N = torch.from_numpy(labels)[order].long()
        super().__init__(
            train=(x_NCHW[:_NUM_TRAIN], y_N[:_NUM_TRAIN]),
            test=(x_NCHW[_NUM_TRAIN:], y_N[_NUM_TRAIN:]),
            num_classes=10,
            mean=(0.305,) * (3 if rgb else 1),  # of the 8x8 pixels
            std=(0.376,) * (3 if rgb else 1),
            checksums={
                "sklearn.datasets.load_digits": hashlib.sha256(
                    images.tobytes() + labels.tobytes()
                ).hexdigest()
            },
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @staticmethod
    def prepare(root: Path) -> None:
        """Do nothing, because scikit-learn includes the digits."""


def _read() -> Any:
    """Return one row per image: its 64 pixels from 0 to 16, then its label.

    The file is read directly if it is found, because importing scikit-learn takes more than a second.
    """
    package = find_spec("sklearn")
    folders = package.submodule_search_locations if package else None
    path = Path(folders[0]) / "datasets" / "data" / "digits.csv.gz" if folders else None
    if path is not None and path.is_file():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return np.column_stack((pixels, labels))


DATASET = Digits
