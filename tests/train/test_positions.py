"""Random bits depend on an element's position in the whole model, whatever the mount and the buckets."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mounted_runs import ONE, SEVERAL, SHARDED, UNITS, compare_with_whole, processes

RANDOM: dict[str, dict[str, Any]] = {
    "natural": {"reducer": "natural"},
    "natural, small tensors dense": {"reducer": "natural", "min_compress": 20},
    "natural of the model": {"reducer": "natural", "grouping": "model"},
    "natural, 8 bits, residual": {
        "reducer": "natural",
        "reducer_options": {"bits": 8},
        "memory": "residual",
    },
    "qsgd": {"reducer": "qsgd"},
    "qsgd of layers": {"reducer": "qsgd", "reducer_options": {"bucket": None, "norm": "max"}},
    "dithering": {"reducer": "dithering"},
    "terngrad": {"reducer": "terngrad"},
    "randomk of layers": {"reducer": "randomk", "reducer_options": {"density": 0.1}, "grouping": "layer"},
    "randomk, own": {
        "reducer": "randomk",
        "reducer_options": {"density": 0.1, "draw": "own"},
        "grouping": "layer",
    },
}
"""Methods whose scales, if they have any, are those of layers or of parts of them."""

MANY: dict[str, Any] = {"mount": "ddp", "bucket_mb": 0.00001}
"""Options with which each of the four parameters has its own bucket."""


@pytest.mark.parametrize("mount", [ONE, SEVERAL, MANY, SHARDED, UNITS], ids=str)
def test_every_mount_and_bucket_size_gives_the_same_random_gradients(
    tmp_path: Path, mount: dict[str, Any]
) -> None:
    for found in processes(2, partial(compare_with_whole, tmp_path, RANDOM, mount)):
        assert {name: same for name, (same, _) in found.items() if not same} == {}
