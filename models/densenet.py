"""DenseNet for small images: the densely connected network of 121 layers with a growth rate of 12.

Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", 2017,
https://arxiv.org/abs/1608.06993: DenseNet-BC, with the blocks of DenseNet-121 (table 1), a growth rate of 12,
and a stem of one 3x3 convolution without pooling. It is the `densenet_cifar` of Accordion's code
(uw-mad-dash/Accordion, commit 82046df).

    growth    blocks           parameters, 10 classes    100 classes
        12    6, 12, 24, 16                 1,000,618      1,035,268
        12    2, 2, 2, 2                       59,218         63,628
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# B = images, C = channels, H, W = height and width, K = classes


class DenseLayer(nn.Module):
    """Append `growth` channels, made by a 1x1 and a 3x3 convolution, to those of the input."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.conv1(F.relu(self.bn1(x_BCHW)))
        return torch.cat([self.conv2(F.relu(self.bn2(y_BCHW))), x_BCHW], dim=1)


class Transition(nn.Sequential):
    """Halve the number of channels by a 1x1 convolution, and height and width by the mean of 2x2 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width // 2, 1, bias=False),
            nn.AvgPool2d(2),
        )


class DenseNet(nn.Module):
    """Dense blocks with transitions between them; the classifier takes the mean over all pixels.

    Args:
        growth: Number of channels that each layer appends (k in the paper), 1 or more.
        blocks: Number of layers of each block, 1 or more.

    Raises:
        ValueError: if an option is out of range, or the transitions would reduce the images to nothing.
    """

    def __init__(
        self,
        *,
        growth: int = 12,
        blocks: tuple[int, ...] = (6, 12, 24, 16),
        num_classes: int,
        channels: int = 3,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        if growth < 1:
            raise ValueError(f"growth is {growth}; allowed is a whole number of 1 or more")
        if not blocks or min(blocks) < 1:
            raise ValueError(f"blocks is {list(blocks)}; allowed is a list of whole numbers of 1 or more")
        least = 2 ** (len(blocks) - 1)
        if image_size < least:
            raise ValueError(
                f"the images have {image_size}x{image_size} pixels, but {len(blocks)} blocks halve them "
                f"{len(blocks) - 1} times: use images of at least {least}x{least}, or fewer blocks"
            )
        width = 2 * growth
        self.features = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False))
        for number, num_layers in enumerate(blocks):
            if number > 0:
                self.features.append(Transition(width))
                width //= 2
            for _ in range(num_layers):
                self.features.append(DenseLayer(width, growth))
                width += growth
        self.features.extend([nn.BatchNorm2d(width), nn.ReLU()])
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features_BCHW: Tensor = self.features(x_BCHW)
        logits_BK: Tensor = self.classifier(features_BCHW.mean(dim=(2, 3)))
        return logits_BK


MODEL = DenseNet
