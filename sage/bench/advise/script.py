"""`sage.advise`: which set-up to use in one's own script, from short measurements on its ranks."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sage import registry
from sage.bench.advise import DENSITIES, REDUCERS, predictions, script_times, trials
from sage.bench.advise.judge import judge
from sage.bench.advise.script_times import Step
from sage.bench.advise.setups import REFERENCES, Setup, script_line
from sage.bench.advise.verdict import Verdict
from sage.bench.calibrate import gamma, links, methods, model_times
from sage.bench.calibrate.gamma import Backward
from sage.bench.calibrate.gradients import Gradients
from sage.bench.calibrate.model_times import ComputeTimes
from sage.bench.calibrate.scopes import Scoped, nodes_of
from sage.comm.attached import AttachedWire
from sage.comm.wire import Wire
from sage.config import Config, load, resolve
from sage.mount.ddp import ddp_hook
from sage.mount.whole import reduce_model
from sage.predict.calibration import Calibration, MethodTimes, ModelTimes, Parameter
from sage.predict.calibration_schema import Collective
from sage.records.manifest import manifest

STEPS = 6
"""Steps that are timed, and reductions of each reducer."""

SHARES = {"links": 0.25, "reducers": 0.35, "runs": 0.4}
"""Shares of the time."""


def advise(
    model: nn.Module,
    step: Step,
    *,
    reducers: Sequence[str] = REDUCERS,
    densities: Sequence[float] = DENSITIES,
    minutes: float = 2.0,
) -> Verdict:
    """Measure, predict and verify on the ranks of a script, and recommend one line of it.

        verdict = sage.advise(model, lambda model: loss(model(x), y).backward())
        print(verdict)

    Call it on every rank, after `init_process_group`, with the model before it is wrapped. The model is
    copied: its parameters, gradients and buffers stay as they are. `optimizer.step()` is not part of a
    measured step. The reference is the faster of DDP's own all-reduce and `bf16` in DDP.

    Args:
        model: The model on its device, the same on all ranks, not wrapped in DistributedDataParallel.
        step: A function that runs the module that it is given forward once, and backward. It may load a
            batch.
        reducers: Names of reducers, `exact` or `bf16` among them.
        densities: Target densities of the reducers that have one.
        minutes: Time for all measurements together.

    Raises:
        ValueError: if there is one rank only, or an argument does not fit; the message says what would.
        WireError: if not all ranks arrive, or a rank is lost.
    """
    if not dist.is_initialized():
        raise ValueError("no process group is initialised: call torch.distributed.init_process_group first")
    if dist.get_world_size() == 1:
        raise ValueError("there is one rank: sage.advise measures between two ranks or more")
    if isinstance(model, DistributedDataParallel):
        raise ValueError("the model is wrapped in DistributedDataParallel: pass model.module")
    if not minutes > 0:
        raise ValueError(f"minutes is {minutes}; allowed is more than 0")
    configs = _configs(reducers, densities)
    device = next(model.parameters()).device
    wire = AttachedWire(None, device=device)
    try:
        return _advise(model, step, configs, 60 * minutes, wire, device)
    finally:
        wire.close()


def _advise(
    model: nn.Module,
    step: Step,
    configs: Sequence[Config],
    seconds: float,
    wire: AttachedWire,
    device: torch.device,
) -> Verdict:
    copied = copy.deepcopy(model)
    times, gradients = script_times.measure(copied, step, STEPS, wire)
    time = methods.Time(STEPS, SHARES["reducers"] * seconds / len(configs))
    measured: list[MethodTimes] = []
    failed = []
    for config in configs:
        try:
            measured.append(methods.measure(config, gradients, wire, time))
        except methods.Failed as error:  # a reducer that cannot reduce this model is no candidate
            failed.append(f"the reducer {registry.short(config.reducer)} failed: {error}")
    name = type(model).__name__
    nodes = nodes_of(wire)
    backward = script_times.backward_of(copied, step, device)
    calibration = _calibration(name, times, backward, gradients, measured, wire, device, nodes, seconds)
    setups = predictions.choose(calibration, configs, wire, script_line, device)
    blocks = [_block(copy.deepcopy(model), step, setup, device) for setup in setups]
    taken = trials.measure([take for take, _ in blocks], wire, SHARES["runs"] * seconds)
    for _, close in blocks:
        close()
    content = ""
    if wire.rank == 0:
        verdict = judge(
            setups,
            taken,
            workload=name,
            command="",
            ranks=wire.world_size,
            nodes=len(nodes),
            break_even=predictions.break_even(calibration, setups),
            failed=failed,
        )
        content = json.dumps(verdict.to_dict())
    return Verdict.from_dict(json.loads(wire.texts(content)[0]))


def _calibration(
    name: str,
    times: ComputeTimes,
    backward: Backward,
    gradients: Gradients,
    measured: Sequence[MethodTimes],
    wire: Wire,
    device: torch.device,
    nodes: Sequence[Sequence[int]],
    seconds: float,
) -> Calibration:
    """Measure the links, and put everything together; complete on rank 0."""
    messages: dict[Collective, set[int]] = {}
    for method in measured:
        for message in method.messages[wire.world_size]:
            messages.setdefault(message.collective, set()).add(message.bytes)
    # Several ranks of several nodes count as one scope here: no further process groups are made.
    scoped = Scoped("inter" if len(nodes) > 1 else "intra", wire)
    ranks = [ComputeTimes(**json.loads(text)) for text in wire.texts(json.dumps(asdict(times)))]
    # The same on all ranks, whose decisions depend on it.
    rest = max(max(rank.forward) + max(rank.backward) for rank in ranks)
    measured_links = links.measure(
        scoped, device, seconds=SHARES["links"] * seconds, rest=rest, messages=messages
    )
    most_bytes = gradients.steps[0].nbytes
    ratios = gamma.measure(backward, measured_links.samples, wire, most_bytes=most_bytes, device=device)
    parameters = [
        Parameter(parameter, torch.Size(shape).numel(), model_times.ready_seconds(ranks, parameter))
        for parameter, shape in gradients.shapes
    ]
    described = manifest({}, {})
    return Calibration(
        machine=described["machine"],
        time=described["time"],
        world_size=wire.world_size,
        ranks_per_node=max(map(len, nodes)),
        links=tuple(measured_links.samples),
        model=ModelTimes(
            workload=name,
            batch_size=1,  # of the script's own steps
            parameters=tuple(sorted(parameters, key=lambda parameter: parameter.ready_seconds)),
            forward_seconds=model_times.pooled(ranks, "forward"),
            backward_seconds=model_times.pooled(ranks, "backward"),
            optimizer_seconds=(0.0,),
            gamma=tuple(ratios),
        ),
        methods=tuple(measured),
    )


def _block(
    model: nn.Module, step: Step, setup: Setup, device: torch.device
) -> tuple[trials.Block, Callable[[], None]]:
    """Return a function that takes some steps of a set-up on a model of its own, and one that ends it."""
    reducer, options = setup.config.reducer, dict[str, Any](setup.config.reducer_options)
    reduce: Callable[[], object] | None = None
    close: Callable[[], None] | None = None
    if setup.config.mount == "ddp":
        wrapped = DistributedDataParallel(model, bucket_cap_mb=setup.config.bucket_mb)
        model = wrapped
        if reducer != "exact":  # which is DDP's own all-reduce
            close = ddp_hook(wrapped, reducer, **options).close
    else:
        mount = reduce_model(model, reducer, **options)
        reduce, close = mount.reduce, mount.close

    def take(steps: int) -> None:
        for _ in range(steps):
            model.zero_grad()
            step(model)
            if reduce is not None:
                reduce()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return take, close or (lambda: None)


def _configs(reducers: Sequence[str], densities: Sequence[float]) -> list[Config]:
    """Return a configuration of each reducer, once for each density if it has one."""
    for name in reducers:
        registry.check_name("reducers", name)
    if not set(reducers) & set(REFERENCES):
        raise ValueError(f"reducers has no reference: add {' or '.join(REFERENCES)}")
    if not set(reducers) - set(REFERENCES):
        raise ValueError("reducers has no method that compresses: add one, such as 'topk'")
    configs = []
    for name in reducers:
        has_density = "density" in registry.options_of("reducers", name)
        for options in [{"density": density} for density in densities] if has_density else [{}]:
            configs.append(
                resolve(load("digits-ff", overrides={"reducer": name, "reducer_options": options}))
            )
    return configs
