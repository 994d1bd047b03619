"""Times of forward, backward and the rest of a step, and when each parameter's gradient is ready.

All ranks compute at the same time, as they do in a run. If several ranks share the cores of a machine, the
times are therefore those of a machine so divided, and hold for this number of ranks per machine only.
"""
# N = elements of the flat gradient

import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sage.bench.loopback_wire import LoopbackWire, Stopwatch
from sage.data.dataset import Batch
from sage.records.record import NullRecorder
from sage.timing import Phases
from sage.train.loop import Training
from sage.train.mounted_whole import whole_of

WARM_UP = 2
"""Number of steps before the first one that counts: they allocate memory, and open connections."""

GRADIENT_BYTES = 2**28
"""Most memory for the gradients that are kept."""


@dataclass
class ComputeTimes:
    """One rank's times, in seconds, by step."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    optimizer: list[float] = field(default_factory=list)
    """All of a step but forward, backward and the reduction: clipping, the optimiser's update, the loop."""
    ready: dict[str, list[float]] = field(default_factory=dict)
    """By parameter: from the start of backward until its gradient is complete."""


class StepRecords(NullRecorder):
    """Keeps the records of the steps in memory, on every rank."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def _write(self, record: Any) -> None:
        if record["kind"] == "step":
            self.steps.append(dict(record))


class MarkedPhases(Phases):
    """Phases that also take the time at which each parameter's gradient is complete, by hooks.

    Args:
        names: The parameters, by name.
        device: Their device.
    """

    def __init__(self, names: dict[str, torch.nn.Parameter], device: torch.device) -> None:
        super().__init__(device)
        self.names = names
        self.ready: dict[str, float] = {}
        """Seconds from the start of the last step's backward, by parameter."""
        self._watch = Stopwatch(device)
        self._order: list[str] = []
        self._earlier = 0.0

    def enter(self, name: str) -> None:
        super().enter(name)
        if name == "backward":  # of the last micro-batch: only its gradients are complete
            self._earlier = self.seconds["backward"]
            self._order.clear()
            self._watch = Stopwatch(self._watch.device)
            self._watch.stamp()

    def leave(self) -> None:
        if self._open[-1] == "backward":
            total = self._earlier
            self.ready = {}
            for name, gap in zip(self._order, self._watch.gaps(), strict=True):
                total += gap
                self.ready[name] = total
        super().leave()

    @contextmanager
    def marking(self) -> Iterator[None]:
        """Have hooks on the parameters within the block."""

        def hook(name: str) -> Any:
            def mark(_: Tensor) -> None:
                self._watch.stamp()
                self._order.append(name)

            return mark

        hooks = [p.register_post_accumulate_grad_hook(hook(name)) for name, p in self.names.items()]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()


def measure(training: Training, steps: int, seconds: float) -> tuple[ComputeTimes, list[Tensor]]:
    """Train some steps; return this rank's times, and the gradients (N) of some steps.

    The first steps reduce their gradients, which are kept. The steps that are timed follow: all ranks begin
    each together, and each rank keeps its own gradient. A dense reduction between them would slow the next
    forward and backward down, by up to a half on slow links, which those of a reducer with small payloads
    do not have.

    Args:
        training: With the reducer `exact`, `--profile` and a `StepRecords`; its copies of the model differ
            afterwards.
        steps: Least number of steps that count, after `WARM_UP`.
        seconds: Least time for them on rank 0: the times of short steps vary more.
    """
    record, mount = training.record, whole_of(training.mount)
    assert isinstance(record, StepRecords)
    phases = MarkedPhases(_parameters(training), training.device)
    training.phases = phases
    batches = training.endless_batches()
    gradients = _reduced(training, batches, steps)
    mount.wire = LoopbackWire(training.device)
    ready: list[dict[str, float]] = []
    first = training.step
    end = math.inf
    with phases.marking():
        while True:
            done = training.step - first
            if done == WARM_UP:
                end = time.perf_counter() + seconds
            is_over = done >= WARM_UP + steps and time.perf_counter() >= end
            # Rank 0 decides; it is also a barrier, so that all ranks compute at the same time.
            if json.loads(training.wire.texts(json.dumps(is_over))[0]):
                break
            training.take_step(next(batches))
            ready.append(phases.ready)
    training.settle()
    mount.wire = training.wire
    times = ComputeTimes()
    for step in record.steps[first + WARM_UP :]:
        times.forward.append(step["phases"]["forward"])
        times.backward.append(step["phases"]["backward"])
        times.optimizer.append(rest_of_step(step))
    for name in phases.names:
        times.ready[name] = [step[name] for step in ready[WARM_UP:] if name in step]
    return times, gradients


def _reduced(training: Training, batches: Iterator[list[Batch]], steps: int) -> list[Tensor]:
    """Take some steps as in a run; return the gradients (N) of those after `WARM_UP`, at most `steps`."""
    mount = whole_of(training.mount).whole
    most = max(2, min(steps, GRADIENT_BYTES // max(1, mount.grad_N.nbytes)))
    gradients = list[Tensor]()
    for _ in range(WARM_UP):
        training.take_step(next(batches))
    kept = mount.feedback.register_forward_pre_hook(lambda _, given: gradients.append(given[0].clone()))
    for _ in range(most):
        training.take_step(next(batches))
    kept.remove()
    return gradients


def _parameters(training: Training) -> dict[str, torch.nn.Parameter]:
    whole = whole_of(training.mount).whole
    names = (span.name for span in whole.layout.spans)
    return dict(zip(names, whole.parameters_in_order, strict=True))


def rest_of_step(record: Mapping[str, Any]) -> float:
    """Return the seconds of a profiled step's record without forward, backward and reduction."""
    phases = record["phases"]
    others = sum(phases.get(name, 0.0) for name in ("forward", "backward", "communicate"))
    coding = sum(record.get(name, 0.0) for name in ("encode_seconds", "decode_seconds"))
    return max(float(record["seconds"] - others - coding), float(phases["update"]))


def pooled(ranks: Sequence[ComputeTimes], name: str) -> tuple[float, ...]:
    """Return the samples of all ranks of `forward`, `backward` or `optimizer`."""
    return tuple(seconds for times in ranks for seconds in getattr(times, name))


def ready_seconds(ranks: Sequence[ComputeTimes], name: str) -> float:
    """Return the median over steps and ranks of a parameter's ready time.

    A parameter that no loss depends on has no gradient: it is ready when backward ends, as DDP finds then.
    """
    samples = [seconds for times in ranks for seconds in times.ready[name]]
    return statistics.median(samples or pooled(ranks, "backward"))
