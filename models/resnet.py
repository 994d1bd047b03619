"""ResNets for small images: ResNet-18 widened for CIFAR, and the CIFAR ResNets 20, 56 and 110.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2015, https://arxiv.org/abs/1512.03385.

    depth   shortcut where the shape changes    parameters, 10 classes    100 classes
       18   1x1 convolution (option B)                      11,173,962     11,220,132
       20   stride and zeros (option A)                        269,722
       56   stride and zeros (option A)                        853,018
      110   stride and zeros (option A)                      1,727,962

ResNet-18 is the ImageNet network of the paper with a 3x3 stem of stride 1 and no pooling after the stem. The
other three are the networks of section 4.2 of the paper.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# B = images, C = channels, H, W = height and width, K = classes

# depth: (width of each stage, blocks per stage, whether shortcuts have weights)
LAYOUTS: dict[int, tuple[tuple[int, ...], int, bool]] = {
    18: ((64, 128, 256, 512), 2, True),
    20: ((16, 32, 64), 3, False),
    56: ((16, 32, 64), 9, False),
    110: ((16, 32, 64), 18, False),
}


class PadShortcut(nn.Module):
    """The shortcut without parameters (option A): subsample pixels and pad the new channels with zeros."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.num_new = out_channels - in_channels
        self.stride = stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.pad(x_BCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.num_new))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut whose output is added to theirs."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, projects: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif projects:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
        else:
            self.shortcut = PadShortcut(in_channels, out_channels, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        return F.relu(self.bn2(self.conv2(y_BCHW)) + self.shortcut(x_BCHW))


class ResNet(nn.Module):
    """A residual network for images of any size; every stage except the first halves height and width."""

    def __init__(self, *, depth: int = 18, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        if depth not in LAYOUTS:
            raise ValueError(f"depth is {depth}; allowed are {', '.join(map(str, LAYOUTS))}")
        widths, num_blocks, projects = LAYOUTS[depth]
        width = widths[0]
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stages = nn.Sequential()
        for stage, out_width in enumerate(widths):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                self.stages.append(Block(width, out_width, stride, projects))
                width = out_width
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(
                module, nn.Conv2d
            ):  # as in the paper: He et al., 2015, "Delving Deep into Rectifiers"
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features_BCHW: Tensor = self.stages(F.relu(self.bn(self.conv(x_BCHW))))
        logits_BK: Tensor = self.classifier(features_BCHW.mean(dim=(2, 3)))
        return logits_BK


MODEL = ResNet
