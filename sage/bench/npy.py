"""Gradients as plain .npy vectors: a file, or a folder of them, such as SIDCo's `grads/`.

Nothing is unpickled: an array of Python objects is refused.
"""
# N = elements of a vector, S = steps, W = ranks

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from numpy.lib import format as npy_format
from torch import Tensor

from sage import storage
from sage.bench.gradients import Layer

RANK = re.compile(r"(?:^|_)r(\d+)(?=_|$)")
"""The rank in a file's name, as in `cifar10_resnet20_r0_gradients_iter_100.npy`."""
PLAIN = "expected a vector of float16, float32 or float64, as numpy.save writes"


@dataclass(frozen=True)
class Vectors:
    """The vectors of .npy files; a file is mapped into memory when its gradient is requested.

    Args:
        name: The name in tables: that of the folder or of the file.
        files_SW: The file of each step and rank.
        numel: Number of elements of each vector.
        numbers_S: The step of each file, by its name.
    """

    name: str
    files_SW: list[list[Path]]
    numel: int
    numbers_S: list[int]

    @property
    def first(self) -> int:
        return self.numbers_S[0]

    @property
    def elements(self) -> int:
        return self.numel

    @property
    def world_size(self) -> int:
        return len(self.files_SW[0])

    @property
    def drop(self) -> int | None:
        return None  # plain vectors have no learning rates

    @property
    def layers(self) -> list[Layer]:
        return []

    def __len__(self) -> int:
        return len(self.files_SW)

    def number(self, step: int) -> int:
        return self.numbers_S[step]

    def gradient(self, step: int, rank: int) -> Tensor:
        """One rank's gradient (N) of one file, as float32.

        Raises:
            sage.storage.Unreadable: a ValueError; the file cannot be read, or a value is not finite in
                float32.
        """
        path = self.files_SW[step][rank]
        dtype, numel, offset = read_header(path)
        try:
            mapped_N = numpy.memmap(path, dtype, mode="r", offset=offset, shape=(numel,))
        except (OSError, ValueError) as error:
            raise storage.Damaged(path, f"cannot be mapped into memory: {error}") from error
        with numpy.errstate(over="ignore"):
            gradient_N = torch.from_numpy(mapped_N.astype(numpy.float32))
        if not bool(gradient_N.isfinite().all()):
            raise storage.Damaged(path, "has values that are not finite in float32")
        return gradient_N


def read(path: Path) -> Vectors:
    """Open a .npy file, or the .npy files of a folder in natural order (2 before 10).

    Consecutive files of a rank count as consecutive steps. A name with `_r0_`, `_r1_`, … has a rank; other
    files are all of one rank. A number at the end of every name is its step; else steps count from 0.

    Raises:
        ValueError: there is no such file, or the folder has no .npy files, or they do not fit together.
    """
    if not storage.is_there(path):
        raise ValueError(f"there is no file {path}")
    if not path.is_dir():
        return Vectors(path.stem, [[path]], read_header(path)[1], _numbers([path]))
    try:
        files = sorted((file for file in path.iterdir() if _is_vector(file.name)), key=_natural)
    except OSError as error:
        raise storage.Unreadable(path, f"cannot be read: {error.strerror}") from error
    if not files:
        raise ValueError(f"{path} is a folder with neither a run nor .npy files")
    numel = read_header(files[0])[1]
    for file in files[1:]:
        if (other := read_header(file)[1]) != numel:
            raise ValueError(
                f"{path}: {files[0].name} has {numel} elements and {file.name} has {other}; "
                "the vectors of a folder need the same number: use a folder for each model"
            )
    by_rank: dict[str, list[Path]] = {}
    for file in files:
        by_rank.setdefault(rank_of(file), []).append(file)
    ranks = [by_rank[rank] for rank in sorted(by_rank, key=lambda rank: (len(rank), rank))]
    if len({tuple(RANK.sub("", file.stem) for file in rank) for rank in ranks}) > 1:
        counts = ", ".join(f"{len(rank)} like {rank[0].name}" for rank in ranks[:3])
        raise ValueError(f"{path}: its ranks have different steps ({counts}); every rank needs each step")
    return Vectors(
        path.resolve().name, [list(step) for step in zip(*ranks, strict=True)], numel, _numbers(ranks[0])
    )


def read_header(path: Path) -> tuple[numpy.dtype, int, int]:
    """Return the dtype of a .npy file, its number of elements, and where they begin in the file.

    Raises:
        sage.storage.Unreadable: a ValueError; the file is not a vector of floating-point numbers.
    """
    with storage.open_regular(path) as file:
        try:
            version = npy_format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise storage.Damaged(path, f"has the .npy format {version[0]}.{version[1]}", PLAIN)
            headers = {1: npy_format.read_array_header_1_0, 2: npy_format.read_array_header_2_0}
            shape, _, dtype = headers[version[0]](file)
        except storage.Unreadable:
            raise
        except Exception as error:  # numpy parses the header, and raises many types for an invalid one
            raise storage.Damaged(path, "is damaged, or not a .npy file", PLAIN) from error
        if dtype.hasobject:
            raise storage.Damaged(path, "has Python objects, which are never unpickled", PLAIN)
        if dtype.kind != "f" or dtype.itemsize > 8:
            raise storage.Damaged(path, f"has values of the type {dtype}", PLAIN)
        if len(shape) != 1 or not shape[0] > 0:
            raise storage.Damaged(path, f"has the shape {shape}", f"{PLAIN}; array.ravel() is one")
        offset = file.tell()
        present = file.seek(0, 2) - offset
        if present != shape[0] * dtype.itemsize:
            raise storage.Damaged(
                path, f"is damaged: its header has {shape[0]} elements of {dtype}, and {present} bytes follow"
            )
        return dtype, shape[0], offset


def write(folder: Path, workload: str, step: int, rank: int, gradient_N: Tensor) -> None:
    """Write one rank's gradient as float32, with the name that SIDCo's code gives such a file.

    Raises:
        sage.storage.NotWritten: (an OSError) the file system refuses to write.
    """
    with storage.writing(folder / f"{workload}_r{rank}_gradients_iter_{step}.npy") as file:
        npy_format.write_array(file, gradient_N.float().numpy(), allow_pickle=False)


def check_empty(folder: Path) -> None:
    """Refuse a folder that has .npy files, which a later reading would mix with the new ones."""
    if folder.is_dir() and any(_is_vector(file.name) for file in folder.iterdir()):
        raise ValueError(f"--out {folder}: the folder has .npy files; give a folder without any")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder}: a file; --format npy writes into a folder")


def rank_of(path: Path) -> str:
    """Return the rank in a file's name without leading zeros; "" if it has none."""
    found = RANK.findall(path.stem)
    return str(int(found[-1])) if found else ""


def _is_vector(name: str) -> bool:
    return name.endswith(".npy") and not name.startswith(".")


def _natural(path: Path) -> tuple[list[str | int], str]:
    """A key that sorts names by the values of the numbers in them."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _numbers(files: Sequence[Path]) -> list[int]:
    """The number at the end of each name, if every name has one and they increase; else 0, 1, …"""
    found = [re.search(r"(\d+)$", file.stem) for file in files]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) == len(files) and all(a < b for a, b in zip(numbers, numbers[1:], strict=False)):
        return numbers
    return list(range(len(files)))
