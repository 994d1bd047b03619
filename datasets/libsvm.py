"""LIBSVM: a9a, w8a, mushrooms, madelon, gisette or a file of your own, vectors with two labels."""

from pathlib import Path
from typing import NamedTuple

from sage.data.fetch import DataError, download, preparing, sha256_of
from sage.data.libsvm import read_libsvm
from sage.data.vectors import L2, Count, Scaling, Vectors

_URL = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary/"


class _Known(NamedTuple):
    num_samples: int
    num_features: int
    file: str


_KNOWN = {
    "a9a": _Known(32_561, 123, "a9a"),
    "w8a": _Known(49_749, 300, "w8a"),
    "mushrooms": _Known(8_124, 112, "mushrooms"),
    "madelon": _Known(2_000, 500, "madelon"),
    "gisette": _Known(6_000, 5_000, "gisette_scale.bz2"),
}
"""Training sets of LIBSVM's page, with their sizes; checksums are not published there."""


class LibSVM(Vectors):
    """A data set in LIBSVM's format for binary classification.

    https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html. `a9a` is Adult (Becker, Kohavi 1996)
    and `w8a` a web page classification, both from Platt 1998; `mushrooms` is from UCI; `madelon` and
    `gisette` (scaled to [-1, 1]) are from the NIPS 2003 feature selection challenge.
    """

    def __init__(
        self,
        root: Path,
        *,
        name: str = "a9a",
        l2: L2 | None = None,
        scaling: Scaling = "none",
        bias: bool = False,
        limit_train: Count | None = None,
    ) -> None:
        """Read `root`/libsvm/`name`, or `root`/`name`; also with the ending .bz2.

        Args:
            name: a9a, w8a, mushrooms, madelon, gisette, or the name of another file in the folder.
            l2: Factor of the regulariser; if omitted, 1/N for N samples.
            scaling: Scaling of each feature: max-abs divides by its largest absolute value, standard
                subtracts its mean and divides by its standard deviation.
            bias: Append a feature that is always 1.
            limit_train: Use only this number of samples, the first ones.
        """
        known = _KNOWN.get(name)
        path = _found(root, name)
        remedy = f"delete the file and run `sage data prepare libsvm --name {name}`"
        try:
            x_NF, y_N = read_libsvm(path, num_features=known.num_features if known else None)
        except DataError as error:
            if known is None:
                raise
            raise DataError(f"{error}; {remedy}") from error
        if known and len(y_N) != known.num_samples:
            raise DataError(
                f"{path} has {len(y_N):,} samples, and {name} has {known.num_samples:,}: {remedy}"
            )
        super().__init__(
            x_NF,
            y_N,
            checksums={path.name: sha256_of(path)},
            source=str(path),
            l2=l2,
            scaling=scaling,
            bias=bias,
            limit_train=limit_train,
        )

    @classmethod
    def prepare(cls, root: Path, *, name: str = "a9a") -> None:
        """Download the file, unless it exists, and check it.

        Args:
            name: a9a, w8a, mushrooms, madelon or gisette; any other file must exist already.
        """
        with preparing(root, f"libsvm-{name}", is_there=lambda: _found(root, name)) as is_missing:
            if is_missing and (known := _KNOWN.get(name)):
                download([_URL + known.file], root / "libsvm" / known.file)
        cls(root, name=name)


def _found(root: Path, name: str) -> Path:
    """Return the file of a data set.

    Raises:
        ValueError: The name is not one of a file.
        DataError: There is no such file.
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise ValueError(
            f"name is {name!r}: give one of {', '.join(_KNOWN)}, or the name of a file in libsvm/"
        )
    own = _KNOWN[name].file if name in _KNOWN else name
    names = dict.fromkeys((name, own, own.removesuffix(".bz2"), f"{name}.bz2"))
    for folder in (root / "libsvm", root):
        for each in names:
            if (folder / each).is_file():
                return folder / each
    remedy = f"run `sage data prepare libsvm --name {name}`" if name in _KNOWN else "copy it there"
    raise DataError(f"{root / 'libsvm' / own} is missing: {remedy}")


DATASET = LibSVM
