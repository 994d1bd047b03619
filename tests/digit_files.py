"""Small JPEGs of scikit-learn's digits in a folder tree, for tests of data sets that read images."""

from pathlib import Path

from PIL import Image

from sage.datasets.digits import Digits

MODES = ("RGB", "L", "CMYK")


def write_digits(folder: Path) -> None:
    """Write JPEGs of digits 0 to 2 in three colour modes: 10 of each to `train`, 3 of each to `val`."""
    data = Digits(Path(), size=24)
    for label in range(3):
        own_NCHW = data.train_NCHW[data.train_N == label][:13]
        for number, image_CHW in enumerate(own_NCHW):
            split = "train" if number < 10 else "val"
            path = folder / split / f"digit-{label}" / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray(image_CHW[0].numpy()).resize((20 + number, 24))
            grey.convert(MODES[number % 3]).save(path)
