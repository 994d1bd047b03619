"""Tests of the optimisers' state through torch.distributed.checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.optim import BY_NAME
from sage.optim.base import ReducingOptimizer

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("demo", {"k": 2, "edge": 4}),
    ("dion", {"rank_fraction": 0.25}),
    ("onebit-adam", {"freeze_step": 2}),
    ("onebit-lamb", {"freeze_step": 2}),
    ("zeroone-adam", {"freeze_step": 2, "local_step_scaler": 1, "local_step_clipper": 4}),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))


def advance(model: nn.Module, optimizer: ReducingOptimizer, steps: range) -> list[Tensor]:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_the_state_goes_through_torch_distributed_checkpoint_to_the_bit(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    def work(wire: Wire) -> None:
        model = network()
        optimizer = BY_NAME[name](model.parameters(), lr=0.01, wire=wire, **options)
        advance(model, optimizer, range(3))
        state = {
            "model": model.state_dict(),
            "optimizer": get_optimizer_state_dict(model, optimizer),
            f"own of rank {wire.rank}": optimizer.own_state_dict(),
        }
        dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
        whole = advance(model, optimizer, range(3, 6))

        other = network()
        resumed = BY_NAME[name](other.parameters(), lr=0.5, wire=wire, **options)
        loaded = {
            "model": other.state_dict(),
            "optimizer": get_optimizer_state_dict(other, resumed),
            f"own of rank {wire.rank}": resumed.own_state_dict(),
        }
        dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
        other.load_state_dict(loaded["model"])
        set_optimizer_state_dict(other, resumed, loaded["optimizer"])
        resumed.load_own_state_dict(loaded[f"own of rank {wire.rank}"])
        assert all(map(torch.equal, advance(other, resumed, range(3, 6)), whole))

    simulate(1, work)
