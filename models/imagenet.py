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
    googlenet          6,624,904    with auxiliary classifiers 13,004,888
    inception_v3      23,834,568    with its auxiliary classifier 27,161,264

The networks are made by `torchvision.models.get_model`, https://docs.pytorch.org/vision/stable/models.html,
with random weights, initialised as torchvision does; nothing is downloaded. `resnet`, `vgg` and `googlenet`
are other networks of these families, for images of 32x32 pixels.
"""

import importlib
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from sage.validate import LATER

# B = images, K = classes

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


# The factor of the losses of auxiliary classifiers. GoogLeNet: Szegedy et al. 2015,
# https://arxiv.org/abs/1409.4842, section 5. Inception v3: the paper has no number; this one is that of
# torchvision's reference script, references/classification/train.py.
_AUXILIARY_WEIGHT = {"googlenet": 0.3, "inception_v3": 0.4}


def imagenet(
    *,
    net: Net = "resnet50",
    auxiliary: Annotated[bool, LATER] = False,
    num_classes: int,
    channels: int = 3,
    image_size: int = 224,
) -> nn.Module:
    """Make a network that maps (B, 3, H, W) to logits (B, K).

    Args:
        net: The network, by its name in torchvision.
        auxiliary: Whether GoogLeNet and Inception v3 have auxiliary classifiers, as in their papers. Their
            losses are added to that of the network in training.

    Raises:
        ValueError: if the images do not have three channels or are too small for the network, or if it has no
            auxiliary classifiers, or if torchvision is missing.
    """
    if channels != 3:
        raise ValueError(
            f"the images have {channels} channels, but {net} takes 3: use images in colour, or with "
            "--data digits set --data.rgb"
        )
    least = next((size for family, size in _MIN_SIZE.items() if net.startswith(family)), 1)
    if auxiliary and net == "inception_v3":
        least = 299  # the auxiliary classifier's last convolution
    if image_size < least:
        raise ValueError(
            f"the images have {image_size}x{image_size} pixels, but {net} takes at least {least}x{least}: "
            f"use larger images{', leave out --model.auxiliary' if auxiliary else ''}, "
            "or resnet50, which has no minimum size"
        )
    options: dict[str, Any] = {}
    if net in _AUXILIARY_WEIGHT:
        options = {"aux_logits": auxiliary, "init_weights": True}
    elif auxiliary:
        raise ValueError(
            f"{net} has no auxiliary classifiers: leave out --model.auxiliary, or choose one of "
            f"{', '.join(_AUXILIARY_WEIGHT)}"
        )
    made: nn.Module = _torchvision_models().get_model(net, weights=None, num_classes=num_classes, **options)
    return WithAuxiliary(made, _AUXILIARY_WEIGHT[net]) if auxiliary else made


def _torchvision_models() -> Any:
    """Import the package, which only this model needs."""
    try:
        return importlib.import_module("torchvision.models")
    except ModuleNotFoundError as error:
        release = torch.__version__.partition("+")[0]
        raise ValueError(
            f"the model imagenet needs the package {error.name}: pip install torchvision torch=={release}, "
            "which keeps this torch and installs what fits it"
        ) from error


class WithAuxiliary(nn.Module):
    """A network with auxiliary classifiers, whose logits are returned in training only.

    Args:
        net: Returns the logits and those of the auxiliary classifiers in training, else the logits.
        weight: Factor of the loss of each auxiliary classifier.
    """

    def __init__(self, net: nn.Module, weight: float) -> None:
        super().__init__()
        self.net, self.weight = net, weight

    def forward(self, x_BCHW: Tensor) -> Tensor | tuple[tuple[float, Tensor], ...]:
        """Return the logits (B, K); in training, pairs of a factor of the loss and logits (B, K)."""
        returned = self.net(x_BCHW)
        if isinstance(returned, Tensor):
            return returned
        logits_BK, *auxiliary = returned
        return ((1.0, logits_BK), *((self.weight, other_BK) for other_BK in auxiliary))


MODEL = imagenet
