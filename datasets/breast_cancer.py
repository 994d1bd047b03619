"""Breast cancer: 569 vectors of 30 features with two labels, from scikit-learn, without any download."""

from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from sage.data.fetch import DataError, sha256_of
from sage.data.vectors import L2, Count, Scaling, Vectors


class BreastCancer(Vectors):
    """Breast Cancer Wisconsin (Diagnostic) (Wolberg et al., 1995), the copy in scikit-learn.

    https://doi.org/10.24432/C5DW2B; 357 benign samples have the label 1, and 212 malignant ones -1.
    """

    def __init__(
        self,
        root: Path,
        *,
        l2: L2 | None = None,
        scaling: Scaling = "standard",
        bias: bool = True,
        limit_train: Count | None = None,
    ) -> None:
        """Read the samples from scikit-learn; `root` is not used.

        Args:
            l2: Factor of the regulariser; if omitted, 1/N for N samples.
            scaling: Scaling of each feature: max-abs divides by its largest absolute value, standard
                subtracts its mean and divides by its standard deviation.
            bias: Append a feature that is always 1.
            limit_train: Use only this number of samples, the first ones.
        """
        path = _path()
        rows = np.loadtxt(StringIO(path.read_text(encoding="utf-8")), delimiter=",", skiprows=1)
        super().__init__(
            rows[:, :-1],
            rows[:, -1],
            checksums={f"sklearn/{path.name}": sha256_of(path)},
            source=path.name,
            l2=l2,
            scaling=scaling,
            bias=bias,
            limit_train=limit_train,
        )

    @staticmethod
    def prepare(root: Path) -> None:
        """Do nothing, because scikit-learn includes the samples."""


def _path() -> Path:
    """The file in the package, which is read directly: importing scikit-learn takes more than a second."""
    package: Any = find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder) / "datasets" / "data" / "breast_cancer.csv"
        if path.is_file():
            return path
    raise DataError("breast_cancer.csv is missing, which scikit-learn includes: pip install scikit-learn")


DATASET = BreastCancer
