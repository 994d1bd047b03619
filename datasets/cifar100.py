"""CIFAR-100: 60,000 colour images of 32x32 pixels in 100 classes, 10,000 of them for testing."""

from pathlib import Path
from typing import ClassVar, Literal

from .cifar10 import CIFAR10, Files

BYTEPS_MEAN = (0.50708, 0.48655, 0.44092)
BYTEPS_STD = (0.26733, 0.25644, 0.27615)


class CIFAR100(CIFAR10):
    """CIFAR-100 with the fine labels (Krizhevsky, 2009).

    https://www.cs.toronto.edu/~kriz/cifar.html. The files are in `cifar100/cifar-100-python` or
    `cifar-100-python` under the root. Means and deviations are those of the training images, in three digits
    or, as in BytePS's script, in five.
    """

    name = "cifar100"
    files = Files(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
        test=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
    )
    labels = "fine_labels"
    num_classes = 100
    mean = (0.507, 0.487, 0.441)
    std = (0.267, 0.256, 0.276)
    later: ClassVar[tuple[str, ...]] = ("preprocessing",)

    def __init__(
        self,
        root: Path,
        *,
        augment: bool = True,
        preprocessing: Literal["plain", "byteps"] = "plain",
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """Read the images under `root`, at `cifar100/cifar-100-python` or `cifar-100-python`.

        Args:
            augment: Crop and flip the training images at random.
            preprocessing: plain: means and deviations in three digits; byteps: in five.
            limit_train: Train only on this number of images, the first ones.
            limit_test: Test only on this number of images, the first ones.
        """
        if preprocessing == "byteps":
            self.mean, self.std = BYTEPS_MEAN, BYTEPS_STD
        super().__init__(root, augment=augment, limit_train=limit_train, limit_test=limit_test)


DATASET = CIFAR100
