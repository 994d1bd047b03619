"""CIFAR-100: 60,000 colour images of 32x32 pixels in 100 classes, 10,000 of them for testing."""

import torchvision

from .cifar10 import CIFAR10


class CIFAR100(CIFAR10):
    """CIFAR-100 with the fine labels (Krizhevsky, 2009).

    https://www.cs.toronto.edu/~kriz/cifar.html. The files are in `cifar100/cifar-100-python` or
    `cifar-100-python` under the root. Means and standard deviations are those of the training images.
    """

    name = "cifar100"
    source = torchvision.datasets.CIFAR100
    labels = "fine_labels"
    num_classes = 100
    mean = (0.507, 0.487, 0.441)
    std = (0.267, 0.256, 0.276)


DATASET = CIFAR100
