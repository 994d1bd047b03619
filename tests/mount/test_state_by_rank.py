"""Tests of a mount's state through torch.distributed.checkpoint, also with another number of ranks."""

import copy
import doctest
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from gloo import processes
from mounted import SEVERAL, Wrapped, alone, network
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import sage
from sage.comm.wire import Wire
from sage.mount import other_ranks
from sage.mount.other_ranks import ByRank
from sage.mount.state import State
from sage.mount.whole import ModelMount
from sage.testing.harness import same_bits

SAVED = 2
"""Ranks that save."""


def save(wire: Wire, folder: Path) -> tuple[State, State]:
    """The state that this rank saves after two steps, and its state after two further steps."""
    script = Wrapped(
        network(), wire.rank, "topk", density=0.1, memory="momentum", ddp={"bucket_cap_mb": SEVERAL}
    )
    script.train(range(2), close=False)
    mount = script.mount
    dcp.save({"model": script.model.state_dict(), "mount": mount.state_dict_by_rank()}, checkpoint_id=folder)
    saved = copy.deepcopy(mount.state_dict())
    script.optimizer = torch.optim.SGD(script.model.parameters(), 0.1)
    script.train(range(2, 4), close=False)
    after = copy.deepcopy(mount.state_dict())
    mount.close()
    return saved, after


def load(wire: Wire, folder: Path) -> tuple[State, State]:
    """The state that this rank loads, into one bucket, and its state after two steps."""
    script = Wrapped(network(), wire.rank, "topk", density=0.1, memory="momentum")
    mount = script.mount
    state: dict[str, Any] = {
        "model": script.model.state_dict(),
        "mount": mount.state_dict_by_rank(ranks_before=SAVED),
    }
    dcp.load(state, checkpoint_id=folder)
    script.model.load_state_dict(state["model"])
    mount.load_state_dict_by_rank(state["mount"])
    loaded = copy.deepcopy(mount.state_dict())
    script.optimizer = torch.optim.SGD(script.model.parameters(), 0.1)
    script.train(range(2, 4), close=False)
    after = copy.deepcopy(mount.state_dict())
    mount.close()
    return loaded, after


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[State, State]]]:
    """A checkpoint of two ranks, and what each saved."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, processes(SAVED, partial(save, folder=folder))


def total(states: list[State], name: str, key: str) -> Tensor:
    """The sum over the ranks, in order of rank."""
    return sum((state[name][key] for state in states), torch.zeros_like(states[0][name][key]))


def test_the_same_ranks_continue_to_the_bit(checkpoint: tuple[Path, list[tuple[State, State]]]) -> None:
    folder, saved = checkpoint
    for ours, theirs in zip(processes(SAVED, partial(load, folder=folder)), saved, strict=True):
        for mine, of_them in zip(ours, theirs, strict=True):
            assert mine.keys() == of_them.keys()
            assert all(same_bits(mine[name][key], of_them[name][key]) for name in mine for key in mine[name])


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_the_sum_of_the_residuals_is_kept_with_another_number_of_ranks(
    num_ranks: int, checkpoint: tuple[Path, list[tuple[State, State]]]
) -> None:
    folder, saved = checkpoint
    loaded = [state for state, _ in processes(num_ranks, partial(load, folder=folder))]
    before = [state for state, _ in saved]
    assert any(bool(state["4.weight"]["residual_N"].any()) for state in before)
    for name in before[0]:
        for key in ("residual_N", "velocity_N"):
            assert torch.equal(total(loaded, name, key), total(before, name, key))


def test_each_replica_saves_its_shards_under_their_own_names(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[set[str], bool]:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        found = []
        for _ in range(2):
            torch.manual_seed(0)
            model = nn.Linear(4, 4)
            fully_shard(model, mesh=mesh["shard"])
            mount = sage.fsdp_hook(model, "topk", density=0.25, replicate=mesh["replicate"])
            found.append((model, mount))
        (model, first), (_, second) = found
        generator = torch.Generator().manual_seed(wire.rank)
        model(torch.randn(3, 4, generator=generator)).square().sum().backward()
        dcp.save({"mount": first.state_dict_by_rank()}, checkpoint_id=tmp_path)
        state = {"mount": second.state_dict_by_rank(ranks_before=2)}
        dcp.load(state, checkpoint_id=tmp_path)
        second.load_state_dict_by_rank(state["mount"])
        ours, theirs = first.state_dict(), second.state_dict()
        same = all(torch.equal(ours[name][key], theirs[name][key]) for name in ours for key in ours[name])
        is_some = any(bool(part["residual_N"].any()) for part in ours.values())
        for each in (first, second):
            each.close()
        return {*first.state_dict_by_rank()}, same and is_some

    names, same = zip(*processes(4, work), strict=True)
    assert all(same)
    assert len(set.union(*names)) == 4


@alone
def test_states_of_other_ranks_are_refused() -> None:
    mount = sage.reduce_model(network(), "topk")
    with pytest.raises(ValueError, match=r"ranks that saved the state is 0: expected 1 or more"):
        mount.state_dict_by_rank(ranks_before=0)
    with pytest.raises(ValueError, match="expected those of ranks, such as 'rank 0 of 2': give it what"):
        mount.load_state_dict_by_rank(mount.state_dict())
    state = mount.state_dict_by_rank(ranks_before=2)
    assert [*state] == ["rank 0 of 2", "rank 1 of 2"]
    del state["rank 1 of 2"]
    with pytest.raises(ValueError, match=r"rank 1 of 2 is missing, and there is that of rank 0 of 2: load"):
        mount.load_state_dict_by_rank(state)
    assert isinstance(mount, ModelMount)
    mount.close()
    with pytest.raises(ValueError, match="with hierarchy='node' each rank's part of the gradient depends"):
        ByRank(0, 2, "part 0 of 2", is_fixed=True).to_load({}, 4)


def test_the_examples_in_the_docstrings_are_correct() -> None:
    assert doctest.testmod(other_ranks).failed == 0
