"""VGG for small images, with batch normalisation and one fully connected layer: depths 11, 13, 16 and 19.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014,
https://arxiv.org/abs/1409.1556: configurations A, B, D and E of table 1. One fully connected layer replaces
the three of the paper, because five pooling layers reduce a 32x32 image to one pixel.

VGG-16 has 14,728,266 parameters for 10 classes, including the biases of the convolutions. A bias before batch
normalisation has no effect, and its gradient consists of rounding errors; the biases are included because the
published count includes them.
"""

from torch import Tensor, nn

# B = images, C = channels, H, W = height and width, K = classes

WIDTHS = (64, 128, 256, 512, 512)
# depth: number of convolutions in each stage
LAYOUTS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
MIN_SIZE = 2 ** len(WIDTHS)


class VGG(nn.Module):
    """Five stages of 3x3 convolutions; pooling after each stage halves height and width."""

    def __init__(self, *, depth: int = 16, num_classes: int, channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        if depth not in LAYOUTS:
            raise ValueError(f"depth is {depth}; allowed are {', '.join(map(str, LAYOUTS))}")
        if image_size < MIN_SIZE:
            raise ValueError(
                f"the images have {image_size}x{image_size} pixels, but vgg halves them {len(WIDTHS)} times: "
                f"use images of at least {MIN_SIZE}x{MIN_SIZE} pixels, or resnet, which has no minimum size"
            )
        self.features = nn.Sequential()
        for width, num_convolutions in zip(WIDTHS, LAYOUTS[depth], strict=True):
            for _ in range(num_convolutions):
                self.features.extend(
                    [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                )
                channels = width
            self.features.append(nn.MaxPool2d(2))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features_BCHW: Tensor = self.features(x_BCHW)
        logits_BK: Tensor = self.classifier(features_BCHW.mean(dim=(2, 3)))  # a single pixel for 32x32 images
        return logits_BK


MODEL = VGG
