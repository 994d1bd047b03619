"""Recorded gradients of a real run, every rank's at every step, to be replayed without model and data.

A trace is what reducers were handed, before anything was added to it or left out of it. Long vectors are
sampled: the same elements, drawn once at random, on every rank and at every step. What a threshold selects
depends on an element's own past and nothing else, so a sample shows the density of the whole.

A trace need not be kept: the same configuration, seed and checkpoint give the same trace again, to the bit.
"""
# S = steps, W = ranks, N = elements of the trace

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import Config
from sage.feed.data import data_root
from sage.run import build_model
from sage.task import TASKS
from sage.tell.progress import Display
from sage.tell.record import Silent
from sage.train.loop import Training
from sage.train.recipe import learning_rate
from sage.train.stop import Stop

FORMAT = "sage trace 2"
LARGEST = 15
"""Values are stored as float16 times a power of two that brings the vector's largest just under 2^15."""


@dataclass(frozen=True)
class Trace:
    """The gradients of a run.

    Args:
        codes_SWN: float16; a gradient is codes · 2^exponents.
        exponents_SW: int32.
        lr_S: float64, the learning rates; the gradients do not contain them.
        first: The step of the run that comes first.
        numel: Elements of the vector that N of were drawn from.
        config: The run's configuration.
    """

    codes_SWN: Tensor
    exponents_SW: Tensor
    lr_S: Tensor
    first: int
    numel: int
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """What a table calls it."""
        return str(self.config["workload"])

    @property
    def world_size(self) -> int:
        return self.codes_SWN.shape[1]

    def __len__(self) -> int:
        return self.codes_SWN.shape[0]

    @property
    def drop(self) -> int | None:
        """The first step at which a milestone has brought the learning rate to half or less, if any has."""
        if self.config.get("schedule") != "step":
            return None  # the last step of a cosine is a quarter of the one before, and changes nothing
        dropped_S = self.lr_S[1:] <= self.lr_S[:-1] / 2
        return 1 + int(dropped_S.int().argmax()) if dropped_S.any() else None

    def gradient(self, step: int, rank: int) -> Tensor:
        """One rank's gradient at one step, as float32."""
        return self.codes_SWN[step, rank].float().mul_(2.0 ** int(self.exponents_SW[step, rank]))

    def save(self, path: Path) -> None:
        """Write it as tensors and plain values, which `torch.load` reads with weights_only."""
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"format": FORMAT, **vars(self)}, path)


def load(path: Path) -> Trace:
    """A trace from a file; its tensors stay on the disk until they are looked at.

    Raises:
        ValueError: where the file is none.
    """
    if not path.exists():
        raise ValueError(f"there is no file {path}; `sage bench record WORKLOAD --out {path}` makes a trace")
    try:
        told = torch.load(path, mmap=True, weights_only=True)
    except Exception as error:  # torch says in many ways that a file is not its own
        raise ValueError(f"{path} is no trace: {error}") from error
    if not isinstance(told, dict) or told.pop("format", None) != FORMAT:
        raise ValueError(
            f"{path} is no trace of this version; `sage bench record WORKLOAD --out FILE` makes one"
        )
    return Trace(**told)


def encode(gradient_N: Tensor) -> tuple[Tensor, int]:
    """A gradient as float16 codes and the exponent of the power of two that they are to be multiplied by.

    >>> codes, exponent = encode(torch.tensor([3e-9, -1e-8]))
    >>> codes.tolist(), exponent
    ([6596.0, -21984.0], -41)
    """
    largest = float(gradient_N.abs().max()) if gradient_N.numel() else 0.0
    exponent = int(torch.frexp(torch.tensor(largest)).exponent) - LARGEST if largest > 0 else 0
    return torch.ldexp(gradient_N, torch.tensor(-exponent)).half(), exponent


def is_run(path: Path) -> bool:
    """Whether this is the folder of a run, from which a trace can be made."""
    return (path / "config.json").exists()


def record_run(folder: Path, *, steps: int, elements: int) -> Trace:
    """What a run's reducer is handed in the steps after its newest checkpoint, or the first ones without any.

    The folder stays as it is, and makes the same trace again.
    """
    config = Config.from_dict(json.loads((folder / "config.json").read_text()))
    # Where a run is to stop changes nothing of what comes before, but for a cosine, which ends there.
    if config.schedule != "cosine":
        config = replace(config, steps=None)
    return record(config, steps=steps, elements=elements, folder=folder)


def record(config: Config, *, steps: int, elements: int, folder: Path | None = None) -> Trace:
    """Train some steps, the ranks simulated, and keep what the reducer is handed at each.

    Args:
        elements: At most so many of the vector are kept.
        folder: A run's, to go on from its newest checkpoint.

    Raises:
        ValueError: where the run has fewer steps left.
    """
    world_size = config.world_size
    # All ranks read the same one, for 64 of them would fill the memory.
    data = registry.load("datasets", config.data)(data_root(config.data_root), **config.data_options)
    kept: dict[str, Any] = {}

    def work(wire: Wire) -> None:
        training = Training(
            config,
            wire,
            model=build_model(config, data, wire, torch.device("cpu")),
            data=data,
            task=TASKS[config.task](data.facts),
            reducer=registry.load("reducers", config.reducer)(**config.reducer_options),
            folder=folder or Path(),
            record=Silent(),
            display=Display("record", enabled=wire.rank == 0),
            stop=Stop(),
        )
        torch.manual_seed(config.seed * 1_000_003 + 1 + wire.rank)
        if folder is not None:
            training.resume()
        first, total = training.step, training.total_steps
        if first + steps > total:
            raise ValueError(
                f"the run has {total} steps and stands at {first}, so that no {steps} can be recorded: "
                "lower --steps, or begin a run of more --epochs"
            )
        training.display.total = first + steps
        numel = training.mount.grad_C.numel()
        at_N = sample(numel, elements)
        if wire.rank == 0:
            kept["codes_SWN"] = torch.zeros(steps, world_size, at_N.numel(), dtype=torch.float16)
            kept["exponents_SW"] = torch.zeros(steps, world_size, dtype=torch.int32)
            lrs = [
                learning_rate(config, step, steps_per_epoch=training.steps_per_epoch, total_steps=total)
                for step in range(first, first + steps)
            ]
            kept.update(lr_S=torch.tensor(lrs, dtype=torch.float64), first=first, numel=numel)

        def keep(_: Any, handed: tuple[Tensor, Wire]) -> None:
            codes_N, exponent = encode(handed[0][at_N])
            kept["codes_SWN"][training.step - first, wire.rank] = codes_N
            kept["exponents_SW"][training.step - first, wire.rank] = exponent

        wire.texts("")  # nobody keeps anything before rank 0 has made room
        training.mount.feedback.register_forward_pre_hook(keep)
        with training.display:
            while training.step < first + steps:
                for batches in training.rest_of_epoch():
                    training.take_step(batches)
                    if training.step == first + steps:
                        break
        training.settle()

    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)  # sums of floats depend on it
    try:
        simulate(world_size, work)
    finally:
        torch.set_num_threads(threads)
    return Trace(config=config.to_dict(), **kept)


def sample(numel: int, elements: int) -> Tensor:
    """Which elements of a vector are kept: all, or so many drawn at random, in ascending order."""
    if numel <= elements:
        return torch.arange(numel)
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(numel, generator=generator)[:elements].sort().values
