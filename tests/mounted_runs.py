"""Trainings under each mount on gloo processes, and their state in one dictionary."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # DDP imports it; these imports run once, before ranks are forked
from gloo import processes as processes
from small import Points, small_network
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sage import registry
from sage.comm.wire import Wire
from sage.config import Config
from sage.data.dataset import Batch
from sage.records.progress import Display
from sage.records.record import NullRecorder, Recorder
from sage.tasks.classify import Classify
from sage.testing.harness import same_bits
from sage.train.loop import Training
from sage.train.stop import Stop

GIVEN: dict[str, Any] = {
    "workload": "points",
    "task": "classify",
    "model": "feedforward",
    "data": "digits",
    "min_compress": 0,
    "batch_size": 2,
    "reducer": "topk",
    "reducer_options": {"density": 0.1},
    "epochs": 4.0,
}

SEVERAL: dict[str, Any] = {"mount": "ddp", "bucket_mb": 0.0001}
"""Options that divide the small network into two buckets, of 51 and 112 elements."""

SIZES = (51, 112)
SHARDED: dict[str, Any] = {"mount": "fsdp"}
"""Options with which every rank is a replica, and one unit has all parameters."""

UNITS: dict[str, Any] = {"mount": "fsdp", "bucket_mb": 0.0003}
"""Options that divide the small network into two units, of 112 and 51 elements."""

TWO_BY_TWO: dict[str, Any] = {**UNITS, "shards": 2}
"""The same units, each sharded between two ranks."""

ONE: dict[str, Any] = {"mount": "ddp"}
"""Options with which one bucket holds all parameters."""

AS_WHOLE: dict[str, dict[str, Any]] = {
    "exact": {"reducer": "exact"},
    "bf16": {"reducer": "bf16"},
    "topk, small tensors dense": {"min_compress": 20},
    "sage": {"reducer": "sage", "reducer_options": {"density": 0.1}},
    "powersgd": {"reducer": "powersgd"},
    "estimates": {"memory": "ef21"},
    "momentum and decay before, learning rate in the memory": {
        "momentum_at": "before",
        "momentum_kind": "nesterov",
        "weight_decay": 0.01,
        "weight_decay_at": "before",
        "memory_lr_ratio": True,
        "schedule": "cosine",
    },
    "clipping before and after": {"clip_local": 0.1, "clip_local_by_world": True, "clip_global": 0.05},
    "bf16 autocast": {"amp": "bf16"},
    "loss scale": {"amp": "fp16"},
    "muon and adamw": {"optimizer": "muon", "lr": 0.01, "adamw_lr": 0.005, "clip_global": 0.05},
    "momentum memory": {"memory": "momentum", "momentum": 0.0},
}
"""Options under which a mount that reduces the whole gradient at once gives the bits of `--mount whole`."""


def training(
    wire: Wire,
    folder: Path,
    *,
    task: type[Classify] = Classify,
    model: Callable[[], nn.Module] = small_network,
    record: Recorder | None = None,
    **options: Any,
) -> Training:
    """Build a training of the small network, not yet run."""
    given = {**GIVEN, "world_size": wire.world_size, **options}
    if "reducer" in options:
        given["reducer_options"] = options.get("reducer_options", {})
    config = Config(**given)
    torch.manual_seed(1)
    return Training(
        config,
        wire,
        model=model(),
        data=Points(),
        task=task(Points.facts),
        reducer=registry.load("reducers", config.reducer)(**config.reducer_options),
        folder=folder,
        record=record or NullRecorder(),
        display=Display("", enabled=False),
        stop=Stop(),
    )


def step(run: Training, steps: int) -> Training:
    """Take this many steps."""
    until = run.step + steps
    while run.step < until:
        for batches in run.rest_of_epoch():
            run.take_step(batches)
            if run.step == until:
                break
    run.settle()
    return run


def everything(run: Training) -> dict[str, Tensor]:
    """Return a copy of all state that a step may change, by name."""
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict()["state"],
        "scale": run.loss_scale.state_dict(),
        **run.mount.state_dict(),
    }
    return {name: local(x).clone() for name, x in flattened(state).items()}


def flattened(state: Any, name: str = "") -> dict[str, Tensor]:
    """Return the tensors of nested dictionaries by their joined keys."""
    if isinstance(state, Tensor):
        return {name: state}
    found: dict[str, Tensor] = {}
    if isinstance(state, dict):
        for key, value in state.items():
            found |= flattened(value, f"{name}/{key}")
    return found


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    """Return the names of the tensors that are not bitwise identical."""
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not same_bits(ours[name], theirs[name])]


def weights(run: Training) -> list[Tensor]:
    """Return a copy of the model's parameters, of this rank's shards if they are sharded."""
    return [local(p).clone() for p in run.model.parameters()]


def whole_weights(run: Training) -> list[Tensor]:
    """Return a copy of the model's parameters; a collective call."""
    with run.mount.evaluating():
        return [p.detach().clone() for p in run.model.parameters()]


def local(x: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, or the tensor if it is not sharded."""
    return (x.to_local() if isinstance(x, DTensor) else x).detach()


class Spiked(Classify):
    """A loss whose gradient is not finite in its third batch, where `here`, and in later ones if `again`."""

    here = again = False
    calls = 0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.calls += 1
        loss = super().loss(model, batch)
        is_spiked = self.calls == 3 or (self.again and self.calls > 3)
        return loss * float("inf") if self.here and is_spiked else loss


SKIPPING: dict[str, dict[str, Any]] = {
    "topk": {"momentum_at": "before", "memory_lr_ratio": True, "schedule": "cosine"},
    "exact": {"reducer": "exact", "momentum_at": "before"},
    "powersgd": {"reducer": "powersgd"},
    "dgc": {"reducer": "dgc", "memory": "momentum", "momentum": 0.0},
    "estimates": {"memory": "ef21-sgdm", "momentum": 0.0},
    "qsgd": {"reducer": "qsgd"},
    "fp16 autocast": {"amp": "fp16"},
}


class HalfUsed(nn.Sequential):
    """A network whose last layer is not used."""

    def __init__(self) -> None:
        super().__init__(*small_network().children(), nn.Linear(3, 3))

    def forward(self, input: Tensor) -> Tensor:
        for module in list(self)[:-1]:
            input = module(input)
        return input


def compare_with_whole(
    folder: Path, cases: Mapping[str, Mapping[str, Any]], mount: Mapping[str, Any], wire: Wire
) -> dict[str, tuple[bool, bool]]:
    """For each case of options, whether weights and payload under a mount are those of `--mount whole`."""
    found = {}
    for name, options in cases.items():
        results = []
        for given in (options, {**options, **mount}):
            before = wire.ledger.copy()
            run = step(training(wire, folder, **given), 5)
            results.append((whole_weights(run), wire.ledger.since(before).payload))
        (whole, sent_by_whole), (other, sent) = results
        same = all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))
        found[name] = same, sent == sent_by_whole
    return found
