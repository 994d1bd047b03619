"""Tests that older versions of torch, which lack three names of torch.distributed, give the same results."""
# W = world size, N = elements of a vector

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import processes

from sage.comm import torch_names
from sage.comm.attached import AttachedWire
from sage.comm.wire import Wire

NEW = ("all_gather_single", "reduce_scatter_single", "get_group_store")


def work(host: Wire) -> dict[str, Any]:
    """The results of the three functions on a rank."""
    wire = AttachedWire(device=torch.device("cpu"))
    gathered_WN = wire.gather(values=torch.arange(3.0) + wire.rank)[0]
    summed_N = torch.empty(2)
    torch_names.reduce_scatter(summed_N, torch.arange(4.0) * (wire.rank + 1), dist.group.WORLD)
    texts = wire.texts(f"rank {wire.rank}")
    wire.close()
    return {"gathered": gathered_WN.tolist(), "summed": summed_N.tolist(), "texts": texts}


def without_the_names(host: Wire) -> dict[str, Any]:
    """The same with a torch that has only the older names."""
    for name in NEW[:2]:
        delattr(dist, name)
    del dist.ProcessGroup.get_group_store
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # this torch has renamed them
        return work(host)


@pytest.mark.skipif(not hasattr(dist, NEW[0]), reason="this torch is an older one itself")
def test_an_older_torch_without_the_three_names_gives_the_same_results() -> None:
    new, old = processes(2, work), processes(2, without_the_names)
    assert new == old
    assert [rank["summed"] for rank in new] == [[0.0, 3.0], [6.0, 9.0]]
    assert all(rank["texts"] == ["rank 0", "rank 1"] for rank in new)


def test_the_names_are_used_in_one_module_only() -> None:
    folder = Path(torch_names.__file__).parents[1]
    used = {
        path.name
        for path in folder.rglob("*.py")
        if re.search(rf"dist\.({'|'.join(NEW)})|\.get_group_store\(", path.read_text(encoding="utf-8"))
    }
    assert used == {"torch_names.py"}
