"""ResNet v2 as in MXNet's gluon: pre-activation, batch normalisation of the input; depths 18, 50 and 101.

He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", 2016, https://arxiv.org/abs/1603.05027.
The layers are those of `gluoncv.model_zoo.resnet` (https://github.com/dmlc/gluon-cv, v0.6.0), which the
published runs of BytePS used.

    depth   stem   parameters, 1000 classes    100 classes     10 classes
       18   7x7                  11,687,848     11,226,148     11,179,978
       18   3x3                  11,680,040     11,218,340     11,172,170
       50   7x7                  25,549,480     23,705,380     23,520,970
      101   7x7                  44,541,608     42,697,508     42,513,098

The 7x7 stem has stride 2 and is followed by pooling; the 3x3 stem, gluon's `thumbnail`, keeps the image size.
No convolution has a bias. torchvision's ResNets are other networks: activations come after the sum there.
"""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

# B = images, C = channels, H, W = height and width, K = classes

# depth: (blocks of each stage, whether a block is a bottleneck)
LAYOUTS: dict[int, tuple[tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}

Stem = Literal["7x7", "3x3"]
Init = Literal["xavier", "msra"]


class Block(nn.Module):
    """Convolutions, each after batch normalisation and activation; a shortcut is added at the end."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, is_bottleneck: bool) -> None:
        super().__init__()
        width = out_channels // 4 if is_bottleneck else out_channels
        # (channels, size, stride) of each convolution
        shapes = [(width, 3, stride), (width, 3, 1)]
        if is_bottleneck:
            shapes = [(width, 1, 1), (width, 3, stride), (out_channels, 1, 1)]
        self.norms, self.convolutions = nn.ModuleList(), nn.ModuleList()
        channels = in_channels
        for out, size, step in shapes:
            self.norms.append(nn.BatchNorm2d(channels))
            self.convolutions.append(nn.Conv2d(channels, out, size, step, padding=size // 2, bias=False))
            channels = out
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if in_channels != out_channels
            else None
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = F.relu(self.norms[0](x_BCHW))
        # The convolution of the shortcut takes the first activation, not the block's input.
        shortcut_BCHW = x_BCHW if self.shortcut is None else self.shortcut(y_BCHW)
        y_BCHW = self.convolutions[0](y_BCHW)
        for norm, convolution in zip(self.norms[1:], self.convolutions[1:], strict=True):
            y_BCHW = convolution(F.relu(norm(y_BCHW)))
        return y_BCHW + shortcut_BCHW


class ResNetV2(nn.Module):
    """A residual network for images of any size; every stage except the first halves height and width.

    Args:
        depth: Number of layers with weights: 18, 50 or 101.
        stem: The first convolution: 7x7, stride 2 and pooling, or 3x3.
        init: Weights: xavier: uniform by Glorot and Bengio (2010); msra: normal with variance
            2 / (1 + .25^2) / mean of fan-in and fan-out, after He et al. (2015).
    """

    def __init__(
        self,
        *,
        depth: int = 18,
        stem: Stem = "7x7",
        init: Init = "xavier",
        num_classes: int,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if depth not in LAYOUTS:
            raise ValueError(f"depth is {depth}; allowed are {', '.join(map(str, LAYOUTS))}")
        num_blocks, is_bottleneck = LAYOUTS[depth]
        width = 64
        self.input_norm = nn.BatchNorm2d(channels, affine=False)
        if stem == "7x7":
            self.stem = nn.Sequential(
                nn.Conv2d(channels, width, 7, 2, padding=3, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(3, 2, padding=1),
            )
        else:
            self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False))
        self.stages = nn.Sequential()
        for stage, blocks in enumerate(num_blocks):
            out_width = 64 * 2**stage * (4 if is_bottleneck else 1)
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                self.stages.append(Block(width, out_width, stride, is_bottleneck))
                width = out_width
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                _initialise(module.weight, init)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features_BCHW: Tensor = self.stages(self.stem(self.input_norm(x_BCHW)))
        logits_BK: Tensor = self.classifier(F.relu(self.norm(features_BCHW)).mean(dim=(2, 3)))
        return logits_BK


def _initialise(weight: Tensor, init: Init) -> None:
    if init == "xavier":  # MXNet's Xavier(uniform, magnitude 3, avg)
        nn.init.xavier_uniform_(weight)
    else:  # MXNet's MSRAPrelu(avg, slope .25), which is Xavier's normal variant times this gain
        nn.init.xavier_normal_(weight, gain=math.sqrt(2 / (1 + 0.25**2)))


MODEL = ResNetV2
