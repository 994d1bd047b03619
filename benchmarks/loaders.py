"""Measures how many images, clips, tokens or samples a second the loaders of the data sets deliver.

    SAGE_DATA_DIR=<folder> python benchmarks/loaders.py --output benchmarks/results/loaders.csv

Every data set that can be loaded takes part, and torchvision's ImageFolder and CIFAR10 with a plain
DataLoader, on the same files with the same pre-processing. `image_folder` is also measured with its decoding
in the worker processes of a DataLoader. The loaders take turns: one epoch, or `--seconds` if that ends first.
The rate is that of the median turn. CPU time, which other programs on the machine affect less, is that of
all threads and processes. Tokens include padding.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from sage import registry, storage
from sage.bench.compress import provenance
from sage.data.dataset import Batch, Dataset, data_root, epoch_generator, shard
from sage.data.image_folder import ImageFolder
from sage.data.image_transforms import NORMALISATIONS, Preprocessing

PHOTOGRAPHS = "caltech101-imagefolder"
FIELDS = ("loader", "batch_size", "unit", "per_second", "lowest", "highest", "cpu_microseconds", "turns")
WORKERS = (1, 2)
Loader = Callable[[], Iterable[Batch]]


class WholeBatches(TorchDataset[Batch]):
    """The training batches of an image folder by index, for the worker processes of a DataLoader."""

    def __init__(self, data: ImageFolder, batch_size: int) -> None:
        self.data = data
        self.order_SB = shard(torch.randperm(len(data.train_N)), 0, 1, batch_size)

    def __len__(self) -> int:
        return len(self.order_SB)

    def __getitem__(self, index: int) -> Batch:
        return self.data._train_batch(self.order_SB[index], epoch_generator(0, 0, 0, index))


def unit_of(batch: Batch) -> tuple[str, int]:
    """Return what a batch is counted in, and its number of these."""
    first = batch[0]
    if first.ndim == 4:
        return "images", len(first)
    if first.ndim == 3:
        return "clips", len(first)
    if first.ndim == 2 and not first.is_floating_point():
        return "tokens", first.numel()
    return "samples", len(first)


def of_dataset(data: Dataset, batch_size: int) -> Iterator[Batch]:
    """Return the batches of an epoch, for one rank."""
    return data.train_batches(epoch=0, rank=0, world_size=1, batch_size=batch_size, seed=0)


def of_folder(root: Path, batch_size: int, **options: Any) -> Iterator[tuple[str, Loader]]:
    """Return the loaders of a folder of photographs: ours with threads and processes, and torchvision's."""
    made = partial(registry.load("datasets", "image_folder"), root, folder=PHOTOGRAPHS, **options)
    said = "".join(f" {value}" for value in options.values())
    for count in (0, *WORKERS):
        yield f"image_folder{said}, {count} threads", partial(of_dataset, made(loaders=count), batch_size)
    for count in WORKERS:
        whole = WholeBatches(made(), batch_size)
        workers = partial(DataLoader[Batch], whole, batch_size=None, num_workers=count)
        yield f"image_folder{said}, {count} processes", workers


def of_torchvision(root: Path, batch_size: int) -> Iterator[tuple[str, Loader]]:
    """Return torchvision's data sets with a plain DataLoader."""
    T, by = torchvision.transforms, NORMALISATIONS["plain"]
    unit = [[value / 255 for value in values] for values in (by.mean, by.std)]
    random = [T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*unit)]
    pad = [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*unit)]
    sets: list[tuple[str, Callable[[], Any]]] = [
        (
            "torchvision ImageFolder",
            lambda: torchvision.datasets.ImageFolder(root / PHOTOGRAPHS / "train", T.Compose(random)),
        ),
        ("torchvision CIFAR10", lambda: torchvision.datasets.CIFAR10(root / "cifar10", True, T.Compose(pad))),
    ]
    for name, make in sets:
        try:
            data = make()
        except (OSError, RuntimeError) as error:
            print(f"left out: {name}: {' '.join(str(error).split())}")
            continue
        for count in (0, *WORKERS):
            options: dict[str, Any] = {"batch_size": batch_size, "shuffle": True, "num_workers": count}
            yield f"{name}, {count} processes", partial(DataLoader[Batch], data, **options)


def loaders(root: Path, batch_size: int) -> Iterator[tuple[str, Loader]]:
    """Return every loader for which there is data, and print which are left out."""
    if (root / PHOTOGRAPHS).is_dir():
        for preprocessing in NORMALISATIONS:
            chosen: Preprocessing = preprocessing
            yield from of_folder(root, batch_size, preprocessing=chosen)
    for name in registry.names("datasets"):
        if name == "image_folder":
            continue
        try:
            yield name, partial(of_dataset, registry.load("datasets", name)(root), batch_size)
        except (OSError, ValueError) as error:
            print(f"left out: {name}: {error}")
    yield from of_torchvision(root, batch_size)


def turn(loader: Loader, seconds: float) -> tuple[str, float, float]:
    """Take batches for an epoch or some seconds; return the unit, the rate and the CPU seconds of each."""
    taken, unit = 0, ""
    cpu, begun = _cpu(), time.perf_counter()
    batches = iter(loader())
    for batch in batches:
        unit, count = unit_of(tuple(x for x in batch if isinstance(x, Tensor)))
        taken += count
        if time.perf_counter() - begun > seconds:
            break
    spent = time.perf_counter() - begun
    del batches  # ends worker processes, whose CPU time then counts
    return unit, taken / spent, (_cpu() - cpu) / taken


def _cpu() -> float:
    return sum(os.times()[:4])


def main() -> None:
    """Measure all loaders in turns, print the figures and write them as CSV."""
    parser = argparse.ArgumentParser(description="Measure the loaders of the data sets.")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", default="", help="loaders whose name contains this text")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    every = {name: loader for name, loader in loaders(data_root(), given.batch_size) if given.only in name}
    found: dict[str, list[tuple[str, float, float]]] = {name: [] for name in every}
    for _ in range(given.turns):
        for name, loader in every.items():
            found[name].append(turn(loader, given.seconds))
    rows = []
    for name, turns in found.items():
        rates, cpus = [rate for _, rate, _ in turns], [cpu for *_, cpu in turns]
        unit, rate, cpu = turns[0][0], statistics.median(rates), 1e6 * statistics.median(cpus)
        span = f"{min(rates):,.0f} to {max(rates):,.0f}"
        print(f"{name:40} {rate:12,.0f} {unit}/s ({span}), {cpu:9,.2f} µs of CPU each")
        values = (name, given.batch_size, unit, rate, min(rates), max(rates), cpu, given.turns)
        rows.append(dict(zip(FIELDS, values, strict=True)))
    if given.output:
        command = f"python benchmarks/loaders.py --batch-size {given.batch_size} --seconds {given.seconds:g}"
        head = provenance(f"{command} --turns {given.turns}", "cpu", load)
        storage.write_csv(
            given.output, rows, FIELDS, head=[f"# {name}: {value}" for name, value in head.items()]
        )


if __name__ == "__main__":
    main()
