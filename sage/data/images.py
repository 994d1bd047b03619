"""Image data sets in memory; each batch is normalised and augmented when it is used."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sage.data.dataset import Batch, check_limit, count_steps, epoch_generator, shard, share

# N = samples, S = steps in an epoch, B = samples in a batch, C = channels, H, W = height and width


class Images:
    """A `sage.data.dataset.Dataset` of labelled images that are kept in memory as bytes."""

    def __init__(
        self,
        *,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        checksums: dict[str, str],
        augment: bool = False,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """Store (x_NCHW, y_N) pairs of uint8 images and int64 labels; a limit keeps only the first ones.

        Args:
            mean: Mean of each channel, for pixels between 0 and 1.
            std: Standard deviation of each channel, likewise.
            augment: Crop and flip the training images at random.
        """
        self.train_NCHW, self.train_N = _first(limit_train, train, "limit_train")
        self.test_NCHW, self.test_N = _first(limit_test, test, "limit_test")
        self.mean_CHW = 255 * torch.tensor(mean).view(-1, 1, 1)
        self.std_CHW = 255 * torch.tensor(std).view(-1, 1, 1)
        self.augment = augment
        self.checksums = checksums
        _, channels, height, _ = self.train_NCHW.shape
        self.facts = {"num_classes": num_classes, "channels": channels, "image_size": height}

    def num_steps(self, *, batch_size: int, world_size: int) -> int:
        """Count the batches of an epoch; the number is the same on every rank."""
        return count_steps(len(self.train_N), world_size=world_size, batch_size=batch_size)

    def train_batches(
        self, *, epoch: int, rank: int, world_size: int, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch from batch `start` on; each epoch is shuffled anew."""
        order_N = torch.randperm(len(self.train_N), generator=epoch_generator(seed, epoch))
        order_SB = shard(order_N, rank, world_size, batch_size)
        for index, order_B in enumerate(order_SB[start:], start):
            x_BCHW = self.train_NCHW[order_B]
            if self.augment:
                x_BCHW = crop_and_flip(x_BCHW, epoch_generator(seed, epoch, rank, index))
            yield self._normalised(x_BCHW), self.train_N[order_B]

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield this rank's share of the test set, in order; the last batch may be short."""
        own = share(len(self.test_N), rank=rank, world_size=world_size)
        for begin in range(own.start, own.stop, batch_size):
            batch = slice(begin, min(begin + batch_size, own.stop))
            yield self._normalised(self.test_NCHW[batch]), self.test_N[batch]

    def _normalised(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.float().sub_(self.mean_CHW).div_(self.std_CHW)


def crop_and_flip(x_BCHW: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Shift each image by up to `padding` pixels, padded black, and flip half of them (He et al., 2015).

    Deep Residual Learning for Image Recognition, section 4.2, https://arxiv.org/abs/1512.03385
    """
    B, _, H, W = x_BCHW.shape
    top_B, left_B = torch.randint(2 * padding + 1, (2, B), generator=generator)
    flip_B = torch.randint(2, (B,), generator=generator, dtype=torch.bool)
    # A view of all possible crops: (B, C, tops, lefts, H, W).
    crops = functional.pad(x_BCHW, [padding] * 4).unfold(2, H, 1).unfold(3, W, 1)
    x_BCHW = crops[torch.arange(B), :, top_B, left_B]
    return torch.where(flip_B.view(B, 1, 1, 1), x_BCHW.flip(-1), x_BCHW)


def _first(limit: int | None, pair: tuple[Tensor, Tensor], option: str) -> tuple[Tensor, Tensor]:
    images_NCHW, labels_N = pair
    check_limit(limit, len(labels_N), option, of="images")
    return images_NCHW[:limit], labels_N[:limit]
