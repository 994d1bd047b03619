"""The published pre-processings of photographs for ImageNet, with every random number from a generator."""
# H, W = height and width, C = channels

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

Preprocessing = Literal["plain", "byteps"]
"""`plain`: random resized crop and flip, as in SIDCo; `byteps`: also colour jitter and lighting."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a crop, in pixels."""


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, for pixels from 0 to 255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


NORMALISATIONS: dict[Preprocessing, Normalisation] = {
    "plain": Normalisation((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
    "byteps": Normalisation((123.68, 116.779, 103.939), (58.393, 57.12, 57.375)),
}

AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
JITTER = 0.4
LIGHTING = 0.1

# Principal components of the colours of ImageNet, pixels from 0 to 255: Krizhevsky, Sutskever, Hinton, 2012,
# section 4.1; the values are those of MXNet's RandomLighting and of facebook/fb.resnet.torch.
_EIGENVALUES = (55.46, 4.794, 1.148)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def crop_box(width: int, height: int, generator: torch.Generator) -> Box:
    """Draw a crop: area uniform in [.08, 1] of the image, aspect log-uniform in [3/4, 4/3].

    Up to ten are drawn until one fits; else it is the largest central one of an allowed aspect. Szegedy et
    al., "Going Deeper with Convolutions", 2014, section 6; torchvision's RandomResizedCrop.
    """
    for _ in range(10):
        area, aspect, top, left = torch.rand(4, dtype=torch.float64, generator=generator).tolist()
        target = width * height * (AREA[0] + area * (AREA[1] - AREA[0]))
        ratio = math.exp(math.log(ASPECT[0]) + aspect * (math.log(ASPECT[1]) - math.log(ASPECT[0])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            return x, y, x + w, y + h
    w, h = width, height
    if width / height < ASPECT[0]:
        h = round(width / ASPECT[0])
    elif width / height > ASPECT[1]:
        w = round(height * ASPECT[1])
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def for_training(
    image: Image.Image, size: int, preprocessing: Preprocessing, generator: torch.Generator
) -> Tensor:
    """Crop, resize and flip an image at random; return (3, size, size) float32, normalised."""
    box = crop_box(image.width, image.height, generator)
    image = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    if torch.rand((), generator=generator).item() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if preprocessing == "plain":
        return _normalised(image, NORMALISATIONS[preprocessing])
    enhancers: tuple[Callable[[Image.Image], ImageEnhance._Enhance], ...] = (
        ImageEnhance.Brightness,
        ImageEnhance.Contrast,
        ImageEnhance.Color,
    )
    for which in torch.randperm(3, generator=generator).tolist():
        factor = 1 + JITTER * (2 * torch.rand((), generator=generator).item() - 1)
        image = enhancers[which](image).enhance(factor)
    alpha_C = LIGHTING * torch.randn(3, generator=generator)
    shift_C = torch.tensor(_EIGENVECTORS) @ (alpha_C * torch.tensor(_EIGENVALUES))
    return _normalised(image, NORMALISATIONS[preprocessing], shift_C)


def for_testing(image: Image.Image, size: int, preprocessing: Preprocessing) -> Tensor:
    """Resize the shorter side to 256/224 of `size` and crop the centre; return it normalised."""
    shorter = round(size * 256 / 224)
    scale = shorter / min(image.width, image.height)
    width, height = (max(shorter, int(side * scale)) for side in (image.width, image.height))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return _normalised(image.crop((left, top, left + size, top + size)), NORMALISATIONS[preprocessing])


def _normalised(image: Image.Image, by: Normalisation, shift_C: Tensor | None = None) -> Tensor:
    # Bytes are reordered before they are converted, and the rest is in place: less than half of the time.
    x_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float()
    if shift_C is not None:
        x_CHW.add_(shift_C.view(-1, 1, 1)).clamp_(0, 255)
    mean_CHW, std_CHW = (torch.tensor(each).view(-1, 1, 1) for each in (by.mean, by.std))
    return x_CHW.sub_(mean_CHW).div_(std_CHW)
