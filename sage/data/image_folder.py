"""Images that are read from a folder when they are used, such as ImageNet's 1.3 million photographs."""
# N = images, S = steps in an epoch, B = images in a batch, C = channels, H, W = height and width

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sage.data.dataset import Batch, check_limit, count_steps, epoch_generator, shard, share
from sage.data.fetch import DataError
from sage.data.image_list import ImageList, list_images
from sage.data.image_transforms import Preprocessing, for_testing, for_training
from sage.data.prefetch import Job, in_advance

log = logging.getLogger(__name__)


class ImageFolder:
    """A `sage.data.dataset.Dataset` of the images `train/CLASS/*.jpg` and `val/CLASS/*.jpg` of a folder.

    A batch is a function of (seed, epoch, rank, index), for any number of decoding threads.
    """

    def __init__(
        self,
        folder: Path,
        root: Path,
        *,
        size: int,
        preprocessing: Preprocessing,
        loaders: int = 0,
        skip_damaged: bool = False,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """List the images; a limit keeps some of them, spread evenly over the list.

        Args:
            root: The folder of the data sets, whose cache keeps the lists.
            size: Height and width of the images of a batch.
            loaders: Threads that decode the next batches; 0: the caller decodes each batch.
            skip_damaged: Leave out images that cannot be read, instead of raising an error.

        Raises:
            DataError: if a split or its images are missing, or a class of the test split has no training.
        """
        self.train, self.test = image_lists(folder, root)
        self.train_N = _spread(limit_train, len(self.train), "limit_train")
        self.test_N = _spread(limit_test, len(self.test), "limit_test")
        self.size, self.loaders, self.skip_damaged = size, loaders, skip_damaged
        self.preprocessing: Preprocessing = preprocessing
        self.damaged: set[Path] = set()
        """The images that were left out so far, with `skip_damaged`."""
        numbers = {name: number for number, name in enumerate(self.train.classes)}
        self._test_labels = [numbers[name] for name in self.test.classes]
        self.checksums = {each.folder.name: each.sha256 for each in (self.train, self.test)}
        self.facts = {"num_classes": len(self.train.classes), "channels": 3, "image_size": size}

    def num_steps(self, *, batch_size: int, world_size: int) -> int:
        """Count the batches of an epoch; the number is the same on every rank."""
        return count_steps(len(self.train_N), world_size=world_size, batch_size=batch_size)

    def train_batches(
        self, *, epoch: int, rank: int, world_size: int, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch from batch `start` on; each epoch is shuffled anew."""
        order_N = self.train_N[torch.randperm(len(self.train_N), generator=epoch_generator(seed, epoch))]
        order_SB = shard(order_N, rank, world_size, batch_size)

        def job(index: int) -> Job:
            return lambda: self._train_batch(order_SB[index], epoch_generator(seed, epoch, rank, index))

        return in_advance((job(index) for index in range(start, len(order_SB))), self.loaders)

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield this rank's share of the test set, in order; a batch with left out images is shorter."""
        own_N = self.test_N[share(len(self.test_N), rank=rank, world_size=world_size)]

        def job(at_B: Tensor) -> Job:
            return lambda: self._test_batch(at_B)

        for batch in in_advance((job(at_B) for at_B in own_N.split(batch_size) if len(at_B)), self.loaders):
            if len(batch[0]):
                yield batch

    def _train_batch(self, at_B: Tensor, generator: torch.Generator) -> Batch:
        images, labels = [], []
        for index in at_B.tolist():
            found, image = self._next_readable(index)
            images.append(for_training(image, self.size, self.preprocessing, generator))
            labels.append(int(self.train.labels_N[found]))
        return torch.stack(images), torch.tensor(labels)

    def _next_readable(self, index: int) -> tuple[int, Image.Image]:
        """Read an image; in place of one that is left out, read the next of the list."""
        for offset in range(len(self.train)):
            at = (index + offset) % len(self.train)
            if (image := self._image(self.train.path(at))) is not None:
                return at, image
        raise DataError(f"{self.train.folder} has no image that can be read: copy the images again")

    def _test_batch(self, at_B: Tensor) -> Batch:
        x_BCHW, labels = [torch.empty(0, 3, self.size, self.size)], []
        for index in at_B.tolist():
            if (image := self._image(self.test.path(index))) is not None:
                x_BCHW.append(for_testing(image, self.size, self.preprocessing)[None])
                labels.append(self._test_labels[int(self.test.labels_N[index])])
        return torch.cat(x_BCHW), torch.tensor(labels, dtype=torch.int64)

    def _image(self, path: Path) -> Image.Image | None:
        """Read an image as RGB; None if it is damaged and left out."""
        if path in self.damaged:
            return None
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            what = " ".join(str(error).split())
            if not self.skip_damaged:
                raise DataError(
                    f"{path} is damaged: {what}: replace it, or leave such images out by --data.skip-damaged"
                ) from error
            self.damaged.add(path)
            log.warning("%s is left out, damaged image %d: %s", path, len(self.damaged), what)
            return None


def image_lists(folder: Path, root: Path) -> tuple[ImageList, ImageList]:
    """List the images of `train` and of `val`, or `validation`.

    Raises:
        DataError: if a folder is missing, or a class is in the second one alone.
    """
    layout = "expected are train/CLASS/*.jpg and val/CLASS/*.jpg (or validation/CLASS/*.jpg) in it"
    validation = next((name for name in ("val", "validation") if (folder / name).is_dir()), None)
    if validation is None or not (folder / "train").is_dir():
        missing = "val" if (folder / "train").is_dir() else "train"
        if record := next(folder.glob("*.rec"), None):
            raise DataError(
                f"{folder / missing} is missing, and {record.name} is in MXNet's RecordIO, which SAGE cannot "
                f"read: convert it by mxnet.recordio (MXIndexedRecordIO, unpack); {layout}"
            )
        raise DataError(
            f"{folder / missing} is missing: {layout}; for ImageNet run `sage data prepare image_folder "
            "--archives FOLDER` with the folder of its official tars; or set --data.folder"
        )
    train, test = list_images(folder / "train", root), list_images(folder / validation, root)
    if unknown := set(test.classes) - set(train.classes):
        raise DataError(f"{test.folder / min(unknown)} is a class without training images: {layout}")
    return train, test


def _spread(limit: int | None, num: int, option: str) -> Tensor:
    check_limit(limit, num, option, of="images")
    kept = num if limit is None else limit
    return torch.arange(kept) * num // kept
