"""SENet-18 for small images: a pre-activation ResNet-18 with a channel gate in each block.

Hu, Shen, Sun, "Squeeze-and-Excitation Networks", 2018, https://arxiv.org/abs/1709.01507, with the
pre-activation block of He et al., "Identity Mappings in Deep Residual Networks", 2016, https://arxiv.org/abs/1603.05027.

The model has 11,260,354 parameters for 10 classes and 11,306,524 for 100 classes. Convolutions have no bias,
except the two 1x1 convolutions of each gate. The reduction ratio is 16. There is no normalisation between the
last stage and the classifier.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# B = images, C = channels, H, W = height and width, K = classes

WIDTHS = (64, 128, 256, 512)
NUM_BLOCKS = 2
REDUCTION = 16


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in (0, 1) computed from the means of all channels (equations 2 to 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, width // REDUCTION, 1)
        self.excite = nn.Conv2d(width // REDUCTION, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        mean_BC11 = x_BCHW.mean(dim=(2, 3), keepdim=True)
        gate_BC11: Tensor = self.excite(F.relu(self.squeeze(mean_BC11))).sigmoid()
        return x_BCHW * gate_BC11


class Block(nn.Module):
    """A pre-activation block: twice normalise, activate and convolve; then channel gate and shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.gate = SqueezeExcite(out_channels)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        active_BCHW = F.relu(self.bn1(x_BCHW))
        # A projection uses the activated input; an identity shortcut uses x, so that the path stays identity.
        shortcut_BCHW: Tensor = x_BCHW if self.shortcut is None else self.shortcut(active_BCHW)
        y_BCHW: Tensor = self.gate(self.conv2(F.relu(self.bn2(self.conv1(active_BCHW)))))
        return y_BCHW + shortcut_BCHW


class SENet(nn.Module):
    """The squeeze-and-excitation ResNet-18 for images of any size."""

    def __init__(self, *, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        width = WIDTHS[0]
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stages = nn.Sequential()
        for stage, out_width in enumerate(WIDTHS):
            for block in range(NUM_BLOCKS):
                self.stages.append(Block(width, out_width, stride=2 if stage > 0 and block == 0 else 1))
                width = out_width
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features_BCHW: Tensor = self.stages(F.relu(self.bn(self.conv(x_BCHW))))
        logits_BK: Tensor = self.classifier(features_BCHW.mean(dim=(2, 3)))
        return logits_BK


MODEL = SENet
