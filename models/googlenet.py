"""GoogLeNet for small images: nine inception modules with batch normalisation.

Szegedy et al., "Going Deeper with Convolutions", 2014, https://arxiv.org/abs/1409.4842: the widths of the
modules are those in table 1. The stem is one 3x3 convolution to 192 channels. Each 5x5 convolution is
replaced by two 3x3 convolutions (Szegedy et al., "Rethinking the Inception Architecture for Computer Vision",
2015, https://arxiv.org/abs/1512.00567). There are no auxiliary classifiers.

The model has 6,166,250 parameters for 10 classes and 6,258,500 for 100 classes, including the biases of the
convolutions. A bias before batch normalisation has no effect, and its gradient consists of rounding errors;
the biases are included because the published counts include them.
"""

import torch
from torch import Tensor, nn

# B = images, C = channels, H, W = height and width, K = classes

# One tuple per stage; for each module the widths of: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def convolve(in_channels: int, out_channels: int, size: int) -> nn.Sequential:
    """Make a convolution that keeps the image size, followed by batch normalisation and activation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, size, padding=size // 2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class Inception(nn.Module):
    """Four branches over the same input; their outputs are concatenated along the channels."""

    def __init__(self, width: int, n1: int, reduce3: int, n3: int, reduce5: int, n5: int, pool: int) -> None:
        super().__init__()
        self.branch1 = convolve(width, n1, 1)
        self.branch3 = nn.Sequential(convolve(width, reduce3, 1), convolve(reduce3, n3, 3))
        self.branch5 = nn.Sequential(
            convolve(width, reduce5, 1), convolve(reduce5, n5, 3), convolve(n5, n5, 3)
        )
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), convolve(width, pool, 1))
        self.width = n1 + n3 + n5 + pool

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branches = (self.branch1, self.branch3, self.branch5, self.branch_pool)
        return torch.cat([branch(x_BCHW) for branch in branches], dim=1)


class GoogLeNet(nn.Module):
    """The inception network for images of any size."""

    def __init__(self, *, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        width = 192
        self.features = nn.Sequential(convolve(channels, width, 3))
        for stage, modules in enumerate(STAGES):
            if stage > 0:
                self.features.append(nn.MaxPool2d(3, stride=2, padding=1))
            for widths in modules:
                inception = Inception(width, *widths)
                self.features.append(inception)
                width = inception.width
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features_BCHW: Tensor = self.features(x_BCHW)
        logits_BK: Tensor = self.classifier(features_BCHW.mean(dim=(2, 3)))
        return logits_BK


MODEL = GoogLeNet
