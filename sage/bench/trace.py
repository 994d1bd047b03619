"""Traces: recorded gradients of a run, of every rank and step, to replay without model and data.

A trace has the reducers' inputs, before error feedback and selection. Long vectors are sampled: the same
elements, drawn once at random, on every rank and at every step. Whether a threshold selects an element
depends only on that element's history, so a sample has the density of the whole vector.

A trace can be recorded again: the same configuration, seed and checkpoint give a bitwise identical trace.
"""
# S = steps, W = ranks, N = elements of the trace

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sage import registry, storage
from sage.bench.gradients import Layer
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import Config, recorded
from sage.data.dataset import data_root
from sage.output.text import clean_text
from sage.records.progress import Display
from sage.records.record import NullRecorder
from sage.train.loop import Training
from sage.train.mounted_whole import whole_of
from sage.train.run import build_model
from sage.train.schedules import learning_rate
from sage.train.stop import Stop

FORMAT = "sage trace 2"
LARGEST = 15
"""Values are float16 times a power of two, chosen so that the vector's largest value is just under 2^15."""


@dataclass(frozen=True)
class Trace:
    """The gradients of a run.

    Args:
        codes_SWN: float16; a gradient is codes · 2^exponents.
        exponents_SW: int32.
        lr_S: float64, the learning rates, which are not a factor of the gradients.
        first: The run's step at which the trace begins.
        numel: Number of elements of the whole vector, of which N were sampled.
        config: The run's configuration.
        sizes: Name and number of elements of each parameter, in the order of the vector. Empty in traces of
            earlier versions.
    """

    codes_SWN: Tensor
    exponents_SW: Tensor
    lr_S: Tensor
    first: int
    numel: int
    config: dict[str, Any]
    sizes: list[tuple[str, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The workload's name, for tables."""
        return str(self.config["workload"])

    @property
    def world_size(self) -> int:
        return self.codes_SWN.shape[1]

    @property
    def elements(self) -> int:
        """Number of elements sampled, N."""
        return self.codes_SWN.shape[2]

    @property
    def layers(self) -> list[Layer]:
        """The parameters in the order of the vector; empty if the trace does not have them."""
        if not self.sizes:
            return []
        ends = torch.tensor([0, *(numel for _, numel in self.sizes)]).cumsum(0)
        bounds = torch.searchsorted(sample(self.numel, self.elements), ends).tolist()
        return [
            Layer(name, numel, start, stop)
            for (name, numel), start, stop in zip(self.sizes, bounds[:-1], bounds[1:], strict=True)
        ]

    def number(self, step: int) -> int:
        """The run's step of the gradient at this index."""
        return self.first + step

    def __len__(self) -> int:
        return self.codes_SWN.shape[0]

    @property
    def drop(self) -> int | None:
        """The first step at which a milestone has lowered the learning rate to half or less, or None."""
        if self.config.get("schedule") != "step":
            return None  # the last step of a cosine has a quarter of the rate before, with no effect
        dropped_S = self.lr_S[1:] <= self.lr_S[:-1] / 2
        return 1 + int(dropped_S.int().argmax()) if dropped_S.any() else None

    def gradient(self, step: int, rank: int) -> Tensor:
        """One rank's gradient at one step, as float32."""
        return self.codes_SWN[step, rank].float().mul_(2.0 ** int(self.exponents_SW[step, rank]))

    def save(self, path: Path) -> None:
        """Write the trace atomically, as tensors and plain values."""
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_tensors(path, {"format": FORMAT, **vars(self)})


def load(path: Path) -> Trace:
    """Load a trace; its tensors are memory-mapped.

    Raises:
        sage.storage.Unreadable: a ValueError; the file is not a trace, or has another format version.
    """
    remedy = f"`sage bench record WORKLOAD --out {path}` records a trace"
    try:
        content = storage.read_tensors(path, "a trace", mmap=True, remedy=remedy)
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}; {remedy}") from error
    found = content.pop("format", None)
    if found != FORMAT:
        raise _of_another_format(path, found, remedy)
    if fault := storage.TRACE.fault(content) or _misfit(content):
        raise storage.Damaged(path, f"is damaged: {fault}", remedy)
    return Trace(**{each.name: content[each.name] for each in fields(Trace) if each.name in content})


def _of_another_format(path: Path, found: Any, remedy: str) -> storage.Unreadable:
    name, _, version = FORMAT.rpartition(" ")
    if not (isinstance(found, str) and found.startswith(f"{name} ") and found[len(name) + 1 :].isdecimal()):
        return storage.Damaged(path, "is not a trace: it has no trace format", remedy)
    if len(found) < 40 and int(found[len(name) + 1 :]) > int(version):
        remedy = "update SAGE to read it"
    return storage.OtherVersion(
        path, f"is a trace in the format {clean_text(found, 40)!r}, and this version reads {FORMAT!r}", remedy
    )


def _misfit(content: dict[str, Any]) -> str:
    """The fault in a trace's tensors, or ""."""
    wanted = {
        "codes_SWN": (3, torch.float16),
        "exponents_SW": (2, torch.int32),
        "lr_S": (1, torch.float64),
    }
    for name, (dim, dtype) in wanted.items():
        value = content[name]
        if not isinstance(value, Tensor) or value.dim() != dim or value.dtype != dtype:
            return f"{name} is not a tensor of {dim} dimensions in {dtype}"
    steps, ranks, elements = content["codes_SWN"].shape
    if content["exponents_SW"].shape != (steps, ranks) or content["lr_S"].shape != (steps,):
        return "its tensors have different numbers of steps or ranks"
    if not (steps and ranks and elements) or content["numel"] < elements or content["first"] < 0:
        return "it has no steps, ranks or elements, or more elements than the sampled vector"
    if int(content["exponents_SW"].abs().max()) > 1000:
        return "an exponent is outside float32's range"
    sizes = content.get("sizes", [])
    if any(not isinstance(size, tuple) or [*map(type, size)] != [str, int] or size[1] < 0 for size in sizes):
        return "a size is not a name and a number of elements"
    if sizes and sum(numel for _, numel in sizes) != content["numel"]:
        return "its parameters do not have as many elements as the vector"
    return ""


def encode(gradient_N: Tensor) -> tuple[Tensor, int]:
    """A gradient as float16 codes and an exponent: gradient = codes · 2^exponent.

    >>> codes, exponent = encode(torch.tensor([3e-9, -1e-8]))
    >>> codes.tolist(), exponent
    ([6596.0, -21984.0], -41)
    """
    largest = float(gradient_N.abs().max()) if gradient_N.numel() else 0.0
    exponent = int(torch.frexp(torch.tensor(largest)).exponent) - LARGEST if largest > 0 else 0
    return torch.ldexp(gradient_N, torch.tensor(-exponent)).half(), exponent


def is_run(path: Path) -> bool:
    """Whether this is a run folder, of which a trace can be recorded."""
    return storage.is_there(path / "config.json")


def record_run(
    folder: Path, *, steps: int, elements: int, each: Callable[[int, int, Tensor], None] | None = None
) -> Trace:
    """Record the steps after a run's newest checkpoint, or its first steps if it has none.

    The folder is not changed, and gives the same trace again.
    """
    try:
        config = recorded(storage.read_json(folder / "config.json", storage.CONFIG))
    except storage.Unreadable:
        raise
    except (ValueError, TypeError) as error:
        raise storage.Damaged(folder / "config.json", f"is damaged: {error}", storage.RERUN) from error
    # The last step of a run does not affect earlier steps, except with a cosine schedule, which ends there.
    if config.schedule != "cosine":
        config = replace(config, steps=None)
    return record(config, steps=steps, elements=elements, folder=folder, each=each)


def record(
    config: Config,
    *,
    steps: int,
    elements: int,
    folder: Path | None = None,
    each: Callable[[int, int, Tensor], None] | None = None,
) -> Trace:
    """Train some steps with simulated ranks, and keep the reducer's input of each step.

    Args:
        config: The run's configuration.
        steps: Number of steps.
        elements: Maximum number of elements kept of the vector.
        folder: A run folder, to resume from its newest checkpoint.
        each: Called with the run's step, the rank and the elements kept of the gradient, as float32 (N).

    Raises:
        ValueError: The run has fewer steps left.
    """
    world_size = config.world_size
    # All ranks share one data set, because 64 copies would fill the memory.
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
            record=NullRecorder(),
            display=Display("record", enabled=wire.rank == 0),
            stop=Stop(),
        )
        torch.manual_seed(config.seed * 1_000_003 + 1 + wire.rank)
        if folder is not None:
            training.resume()
        first, total = training.step, training.total_steps
        if first + steps > total:
            raise ValueError(
                f"the run has {total} steps and is at step {first}, so {steps} steps cannot be recorded: "
                "lower --steps, or start a run with more --epochs"
            )
        training.display.total = first + steps
        whole = whole_of(training.mount).whole
        numel = whole.grad_C.numel()
        at_N = sample(numel, elements)
        if wire.rank == 0:
            kept["codes_SWN"] = torch.zeros(steps, world_size, at_N.numel(), dtype=torch.float16)
            kept["exponents_SW"] = torch.zeros(steps, world_size, dtype=torch.int32)
            lrs = [
                learning_rate(config, step, steps_per_epoch=training.steps_per_epoch, total_steps=total)
                for step in range(first, first + steps)
            ]
            sizes = [(span.name, span.numel) for span in whole.compressed.spans]
            kept.update(lr_S=torch.tensor(lrs, dtype=torch.float64), first=first, numel=numel, sizes=sizes)

        def keep(_: Any, handed: tuple[Tensor, Wire]) -> None:
            gradient_N = handed[0][at_N]
            if each is not None:
                each(training.step, wire.rank, gradient_N)
            codes_N, exponent = encode(gradient_N)
            kept["codes_SWN"][training.step - first, wire.rank] = codes_N
            kept["exponents_SW"][training.step - first, wire.rank] = exponent

        wire.texts("")  # a barrier: no rank stores anything before rank 0 has allocated the tensors
        whole.feedback.register_forward_pre_hook(keep)
        with training.display:
            while training.step < first + steps:
                for batches in training.rest_of_epoch():
                    training.take_step(batches)
                    if training.step == first + steps:
                        break
        training.settle()

    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)  # floating-point sums depend on it
    try:
        simulate(world_size, work)
    finally:
        torch.set_num_threads(threads)
    return Trace(config=config.to_dict(), **kept)


def sample(numel: int, elements: int) -> Tensor:
    """Indices of the elements to keep: all, or `elements` of them drawn at random, in ascending order."""
    if numel <= elements:
        return torch.arange(numel)
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(numel, generator=generator)[:elements].sort().values
