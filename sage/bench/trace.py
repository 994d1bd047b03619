"""Recorded gradients of a real run, every rank's at every step, to be replayed without model and data.

A trace is what reducers were handed, before anything was added to it or left out of it. Long vectors are
sampled: the same elements, drawn once at random, on every rank and at every step. What a threshold selects
depends on an element's own past and nothing else, so a sample shows the density of the whole.

A trace need not be kept: the same configuration, seed and checkpoint give the same trace again, to the bit.
"""
# S = steps, W = ranks, N = elements of the trace

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sage import registry, storage
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import Config
from sage.data.dataset import data_root
from sage.output.text import clean_text
from sage.records.progress import Display
from sage.records.record import Silent
from sage.train.loop import Training
from sage.train.run import build_model
from sage.train.schedules import learning_rate
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
        """Write it as tensors and plain values, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_tensors(path, {"format": FORMAT, **vars(self)})


def load(path: Path) -> Trace:
    """A trace from a file; its tensors stay on the disk until they are looked at.

    Raises:
        sage.storage.Unreadable: a ValueError, where the file is no trace, or one of another format.
    """
    cure = f"`sage bench record WORKLOAD --out {path}` makes a trace"
    try:
        told = storage.read_tensors(path, "a trace", mmap=True, cure=cure)
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}; {cure}") from error
    found = told.pop("format", None)
    if found != FORMAT:
        raise _of_another_format(path, found, cure)
    if fault := storage.TRACE.fault(told) or _misfit(told):
        raise storage.Damaged(path, f"is damaged: {fault}", cure)
    return Trace(**{each.name: told[each.name] for each in fields(Trace)})


def _of_another_format(path: Path, found: Any, cure: str) -> storage.Unreadable:
    name, _, version = FORMAT.rpartition(" ")
    if not (isinstance(found, str) and found.startswith(f"{name} ") and found[len(name) + 1 :].isdecimal()):
        return storage.Damaged(path, "is no trace: it has no format of one", cure)
    if len(found) < 40 and int(found[len(name) + 1 :]) > int(version):
        cure = "update SAGE to read it"
    return storage.OtherVersion(
        path, f"is a trace in the format {clean_text(found, 40)!r}, and this version reads {FORMAT!r}", cure
    )


def _misfit(told: dict[str, Any]) -> str:
    """What is wrong with the tensors of a trace, or ""."""
    wanted = {
        "codes_SWN": (3, torch.float16),
        "exponents_SW": (2, torch.int32),
        "lr_S": (1, torch.float64),
    }
    for name, (dim, dtype) in wanted.items():
        value = told[name]
        if not isinstance(value, Tensor) or value.dim() != dim or value.dtype != dtype:
            return f"{name} is not a tensor of {dim} dimensions in {dtype}"
    steps, ranks, elements = told["codes_SWN"].shape
    if told["exponents_SW"].shape != (steps, ranks) or told["lr_S"].shape != (steps,):
        return "its tensors are not of the same steps and ranks"
    if not (steps and ranks and elements) or told["numel"] < elements or told["first"] < 0:
        return "it has no steps, ranks or elements, or more elements than the vector they are of"
    if int(told["exponents_SW"].abs().max()) > 1000:
        return "an exponent is beyond those of float32"
    return ""


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
    return storage.is_there(path / "config.json")


def record_run(folder: Path, *, steps: int, elements: int) -> Trace:
    """What a run's reducer is handed in the steps after its newest checkpoint, or the first ones without any.

    The folder stays as it is, and makes the same trace again.
    """
    try:
        config = Config.from_dict(storage.read_json(folder / "config.json", storage.CONFIG))
    except storage.Unreadable:
        raise
    except (ValueError, TypeError) as error:
        raise storage.Damaged(folder / "config.json", f"is damaged: {error}", storage.RERUN) from error
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
            task=registry.load("tasks", config.task)(data.facts),
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
