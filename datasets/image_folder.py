"""Image folder: photographs in train/CLASS and val/CLASS, such as ImageNet, decoded when they are used."""

from functools import partial
from pathlib import Path
from typing import Annotated

from sage.data.fetch import preparing
from sage.data.image_folder import ImageFolder, image_lists
from sage.data.image_transforms import Preprocessing
from sage.data.imagenet_archives import unpack_imagenet
from sage.validate import Range, path


class Folder(ImageFolder):
    """Images of a folder of yours; the classes are the names of the folders, in alphabetical order.

    ImageNet (Russakovsky et al., 2015, https://arxiv.org/abs/1409.0575) has 1,281,167 images for training and
    50,000 for validation in 1,000 classes. Its terms do not allow SAGE to download it; `sage data prepare
    image_folder --archives FOLDER` unpacks the official archives.
    """

    def __init__(
        self,
        root: Path,
        *,
        folder: str = "imagenet",
        size: Annotated[int, Range(8, 4096)] = 224,
        preprocessing: Preprocessing = "plain",
        loaders: Annotated[int, Range(0, 256)] = 0,
        skip_damaged: bool = False,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """List the images of a folder.

        Args:
            folder: The folder of train and val, relative to the folder of the data sets.
            size: Height and width of the images of a batch.
            preprocessing: plain: random resized crop and flip; byteps: also colour jitter and lighting.
            loaders: Threads of each rank that decode images in advance; they do not change the batches.
            skip_damaged: Leave out images that cannot be read, and log them, instead of ending the run.
            limit_train: Train only on this number of images, spread evenly over the classes.
            limit_test: Test only on this number of images, spread evenly over the classes.
        """
        super().__init__(
            root / folder,
            root,
            size=size,
            preprocessing=preprocessing,
            loaders=loaders,
            skip_damaged=skip_damaged,
            limit_train=limit_train,
            limit_test=limit_test,
        )

    @staticmethod
    def prepare(root: Path, *, folder: str = "imagenet", archives: Path | None = None) -> None:
        """List the images, which SAGE cannot download, and keep the lists for later runs.

        Args:
            folder: The folder of train and val, relative to the folder of the data sets.
            archives: Folder of ImageNet's official archives, which are unpacked unless `folder` has images.
        """
        if archives is not None:
            lists = partial(image_lists, root / folder, root)
            with preparing(root / folder, "imagenet", is_there=lists) as is_missing:
                if is_missing:
                    unpack_imagenet(path(archives), root / folder)
        image_lists(root / folder, root)


DATASET = Folder
