"""Measures the memory and the time of the start of `image_folder` on a tree of ImageNet's size.

    python benchmarks/image_tree.py [--images 1281167] [--classes 1000] [--folder FOLDER]

The tree is made, not ImageNet: each class has one small image and hard links to it, with names as long as
ImageNet's. The first start lists the tree, later ones read the list from the cache. Each start is a process
of its own, which then takes one batch. Memory is that of the process, before and after (Linux).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

VALIDATION = 50
"""Images of each class for validation, as in ImageNet."""


def make_tree(folder: Path, num_images: int, num_classes: int) -> None:
    """Make train/CLASS and val/CLASS with `num_images` paths for training in all."""
    from PIL import Image

    for number in range(num_classes):
        wnid = f"n{10_000_000 + number}"
        own = num_images * (number + 1) // num_classes - num_images * number // num_classes
        for split, count in (("train", own), ("val", VALIDATION)):
            inside = folder / split / wnid
            inside.mkdir(parents=True)
            first = inside / f"{wnid}_00000.JPEG"
            Image.new("RGB", (96, 72), (number % 256, 100, 150)).save(first)
            for each in range(1, count):
                os.link(first, inside / f"{wnid}_{each:05}.JPEG")


def start(root: Path) -> dict[str, float]:
    """Load the data set as a run does, take a batch, and return seconds and bytes."""
    import torch

    from sage.datasets.image_folder import Folder

    torch.set_num_threads(1)
    before = _memory("VmRSS")
    begun = time.perf_counter()
    data = Folder(root, folder="tree", loaders=1)
    loaded = time.perf_counter()
    batches = data.train_batches(epoch=0, rank=0, world_size=8, batch_size=32, seed=0)
    next(batches)
    ended = time.perf_counter()
    return {
        "paths": len(data.train) + len(data.test),
        "start_seconds": loaded - begun,
        "batch_seconds": ended - loaded,
        "bytes_before": before,
        "bytes_peak": _memory("VmHWM"),
        "bytes_after": _memory("VmRSS"),
    }


def _memory(which: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{which}:")
    ]
    return 1024 * int(line.split()[1])


def main() -> None:
    """Make the tree, start three times, and print a line for each."""
    parser = argparse.ArgumentParser(description="Measure image_folder on a tree of ImageNet's size.")
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="make the tree here, and keep it")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.start:
        print(json.dumps(start(given.start)))
        return
    holder = contextlib.nullcontext(given.folder) if given.folder else TemporaryDirectory()
    with holder as name:
        root = Path(name)
        if not (root / "tree").is_dir():
            make_tree(root / "tree", given.images, given.classes)
        for when in ("first start", "second start", "third start"):
            command = [sys.executable, __file__, "--start", str(root)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{when}: {found['paths']:,.0f} paths, {found['start_seconds']:.1f} s, first batch after "
                f"{found['batch_seconds']:.1f} s; memory {found['bytes_before'] / 1e6:.0f} MB with torch, "
                f"peak {found['bytes_peak'] / 1e6:.0f} MB, then {found['bytes_after'] / 1e6:.0f} MB; "
                f"load {os.getloadavg()[0]:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
