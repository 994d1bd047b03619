"""The networks of torchvision for ImageNet: ResNet, VGG, AlexNet, GoogLeNet, Inception v3 and DenseNet.

Parameters, without auxiliary classifiers:

    net             1000 classes    100 classes     10 classes
    resnet50          25,557,032     23,712,932     23,528,522
    resnet101         44,549,160     42,705,060     42,520,650
    vgg16            138,357,544    134,670,244    134,301,514
    vgg19            143,667,240    139,979,940    139,611,210
    vgg16_bn         138,365,992                   134,309,962
    vgg19_bn         143,678,248                   139,622,218
    alexnet           61,100,840                    57,044,810
    googlenet          6,624,904
    inception_v3      23,834,568

The networks are made by `torchvision.models.get_model`, https://docs.pytorch.org/vision/stable/models.html,
with random weights, initialised as torchvision does; nothing is downloaded. `resnet`, `vgg` and `googlenet`
are other networks of these families, for images of 32x32 pixels.
"""

from typing import Any, Literal

import torchvision
from torch import nn

# K = classes

Net = Literal[
    "alexnet",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "googlenet",
    "inception_v3",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]

# The smallest height and width, of networks that would reduce smaller images to nothing.
_MIN_SIZE = {"alexnet": 63, "densenet": 29, "googlenet": 15, "inception": 75, "vgg": 32}


def imagenet(
    *, net: Net = "resnet50", num_classes: int, channels: int = 3, image_size: int = 224
) -> nn.Module:
    """Make a network that maps (B, 3, H, W) to logits (B, K).

    Args:
        net: The network, by its name in torchvision.

    Raises:
        ValueError: if the images do not have three channels or are too small for the network.
    """
    if channels != 3:
        raise ValueError(
            f"the images have {channels} channels, but {net} takes 3: use images in colour, or with "
            "--data digits set --data.rgb true"
        )
    least = next((size for family, size in _MIN_SIZE.items() if net.startswith(family)), 1)
    if image_size < least:
        raise ValueError(
            f"the images have {image_size}x{image_size} pixels, but {net} takes at least {least}x{least}: "
            "use larger images, or resnet50, which has no minimum size"
        )
    options: dict[str, Any] = {}
    if net in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    made: nn.Module = torchvision.models.get_model(net, weights=None, num_classes=num_classes, **options)
    return made


MODEL = imagenet
