"""The measurements of a calibration in their order, on one rank."""

import functools
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from sage import registry, storage
from sage.bench.calibrate import gamma, links, methods, model_times
from sage.bench.calibrate.collectives import slowest
from sage.bench.calibrate.gradients import Gradients, gradients_of
from sage.bench.calibrate.model_times import ComputeTimes, StepRecords
from sage.bench.calibrate.plan import Plan
from sage.bench.calibrate.scopes import nodes_of, scopes_of
from sage.comm.agreement import compare
from sage.comm.process import ProcessWire
from sage.config import Config
from sage.data.dataset import Dataset, data_root
from sage.predict.calibration import Calibration, MethodTimes, ModelTimes, Parameter, Samples
from sage.predict.calibration_schema import Collective
from sage.records.manifest import manifest
from sage.records.progress import Display
from sage.train.loop import Training
from sage.train.mounted_whole import whole_of
from sage.train.run import build_model
from sage.train.stop import Stop

STEPS = 0.1
"""Share of the time of the collectives that the timed steps take at least."""


@dataclass
class Notes:
    """What a calibration lacks."""

    failed: list[str] = field(default_factory=list)
    """The reducers that failed, each with the reason."""
    left_out: list[str] = field(default_factory=list)
    """Sizes of collectives that would have taken too long."""


def measure(
    plan: Plan, wire: ProcessWire, device: torch.device, display: Display
) -> tuple[Calibration, Notes]:
    """Measure everything; the result of rank 0 is complete.

    Raises:
        ValueError: the data or an option is invalid.
        WireError: a collective failed; the message gives the rank that caused it.
    """
    notes = Notes()
    config = plan.dense(wire.world_size)
    training = training_of(config, wire, device)
    nodes = nodes_of(wire)
    display.print(f"steps: forward and backward of {config.workload}, on {wire.world_size} ranks")
    times, steps = model_times.measure(training, plan.steps, STEPS * plan.seconds)
    gradients = gradients_of(whole_of(training.mount).whole, steps)
    measured = _methods(plan, gradients, wire, display, notes)
    computing = statistics.median(times.forward) + statistics.median(times.backward)
    rest = slowest(wire, computing, device)  # the same on all ranks, whose decisions depend on it
    samples = _links(plan, measured, wire, device, nodes, rest, display, notes)
    display.print("backward during communication")
    ratios = gamma.measure(
        gamma.of_training(training),
        samples,
        wire,
        most_bytes=whole_of(training.mount).whole.grad_N.nbytes,
        device=device,
    )
    described = manifest(config.to_dict(), {})
    calibration = Calibration(
        machine={**described["machine"], "torch": described["versions"]["torch"], "threads": config.threads},
        time=described["time"],
        world_size=wire.world_size,
        ranks_per_node=max(map(len, nodes)),
        links=tuple(samples),
        model=_model(config, gradients, times, ratios, wire),
        methods=tuple(measured),
    )
    return calibration, notes


def training_of(config: Config, wire: ProcessWire, device: torch.device) -> Training:
    """Return the training of a configuration on this rank, whose records are kept in memory.

    Raises:
        ValueError: the data or an option is invalid.
    """
    data = _data(config.data, data_root(config.data_root), storage.json_text(config.data_options))
    compare(wire, {f"checksum of {name}": value for name, value in data.checksums.items()})
    training = Training(
        config,
        wire,
        model=build_model(config, data, wire, device),
        data=data,
        task=registry.load("tasks", config.task)(data.facts),
        reducer=registry.load("reducers", config.reducer)(**config.reducer_options),
        folder=Path(),
        record=StepRecords(),
        display=Display(config.workload, enabled=False),
        stop=Stop(),
    )
    torch.manual_seed(config.seed * 1_000_003 + 1 + wire.rank)  # as in a run, each rank has its own
    return training


@functools.lru_cache(maxsize=1)
def _data(name: str, root: Path, options: str) -> Dataset:
    """A data set, with its options as JSON; the trainings of a measurement share it."""
    dataset: Dataset = registry.load("datasets", name)(root, **json.loads(options))
    return dataset


def _methods(
    plan: Plan, gradients: Gradients, wire: ProcessWire, display: Display, notes: Notes
) -> list[MethodTimes]:
    time = methods.Time(plan.steps, plan.seconds / len(plan.reducers))
    measured = []
    for config in plan.reducers:
        display.print(f"reducer {registry.short(config.reducer)}")
        try:
            measured.append(methods.measure(config, gradients, wire, time))
        except methods.Failed as error:
            notes.failed.append(f"the reducer {registry.short(config.reducer)} failed: {error}")
    return measured


def _links(
    plan: Plan,
    measured: Sequence[MethodTimes],
    wire: ProcessWire,
    device: torch.device,
    nodes: Sequence[Sequence[int]],
    rest: float,
    display: Display,
    notes: Notes,
) -> list[Samples]:
    """Measure the links of each scope, and return those of all scopes on every rank.

    They rest for as long as a step computes.
    """
    messages: defaultdict[Collective, set[int]] = defaultdict(set)
    for method in measured:
        for message in method.messages[wire.world_size]:
            messages[message.collective].add(message.bytes)
    scopes = scopes_of(wire, nodes, device)
    names = (
        ("inter", "intra") if 1 < len(nodes) < wire.world_size else tuple(scoped.scope for scoped in scopes)
    )
    samples: list[Samples] = []
    for name in names:
        display.print(f"collectives, {name}-node")
        text = ""
        for scoped in scopes:
            if scoped.scope == name:
                seconds = plan.seconds / len(names)
                if len(names) > 1:  # some ranks wait in a collective, which must not time out
                    seconds = min(seconds, plan.config.timeout / 2)
                own = links.measure(scoped, device, seconds=seconds, messages=messages, rest=rest)
                text = json.dumps(asdict(own))
        # The first rank that takes part reports; the exchange is also a barrier before the next scope.
        content = json.loads(next(filter(None, wire.texts(text))))
        samples += [
            Samples(**{**measured, "seconds": tuple(measured["seconds"])}) for measured in content["samples"]
        ]
        notes.left_out += content["left_out"]
    return samples


def _model(
    config: Config,
    gradients: Gradients,
    times: ComputeTimes,
    ratios: Sequence[float],
    wire: ProcessWire,
) -> ModelTimes:
    """Return the times of all ranks together."""
    all_times = [ComputeTimes(**json.loads(text)) for text in wire.texts(json.dumps(asdict(times)))]
    parameters = [
        Parameter(name, torch.Size(shape).numel(), model_times.ready_seconds(all_times, name))
        for name, shape in gradients.shapes
    ]
    return ModelTimes(
        workload=config.workload,
        batch_size=config.batch_size * config.accumulate,
        parameters=tuple(sorted(parameters, key=lambda parameter: parameter.ready_seconds)),
        forward_seconds=model_times.pooled(all_times, "forward"),
        backward_seconds=model_times.pooled(all_times, "backward"),
        optimizer_seconds=model_times.pooled(all_times, "optimizer"),
        gamma=tuple(ratios),
    )
