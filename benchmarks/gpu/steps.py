"""Section `steps`: a training step of ResNet-50 and of the GPT with each reducer, relative to plain torch.

There is one rank and no communication, so the difference is the overhead of the engine and of the method. The
reducer's wire returns at once (sage/bench/loopback_wire.py). The section also counts the kernels that a
reduction launches, by number of layers, and the host's synchronisations.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.gpu.device import Device
from benchmarks.gpu.models import Gpt, resnet50
from benchmarks.gpu.rows import Rows
from sage import registry
from sage.bench.loopback_wire import LoopbackWire
from sage.mount.whole_model import WholeModel
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout

SYNCHRONISES = ("sage", "dgc", "sidco", "gaussiank", "redsync", "mstopk", "threshold", "adacomp", "oktopk")
"""Methods whose counts depend on the data; they may synchronise once."""
FIRST = ("exact", "topk", "sage", "onebit", "efsignsgd", "int8", "qsgd", "powersgd", "bf16")
"""Reducers that are measured first, since the time may not suffice for all."""


def model_and_batch(name: str, device: Device) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model, and one batch of random inputs and targets."""
    small = device.rehearsal
    with device.torch:
        if name == "resnet50":
            made = resnet50((1,)) if small else resnet50()
            side, batch = (32, 2) if small else (224, 64)
            return made, torch.randn(batch, 3, side, side), torch.randint(1000, (batch,))
        gpt = Gpt(1, 16, 2, 64) if small else Gpt()
        shape = (2, 8) if small else (8, 512)
        return gpt, torch.randint(gpt.words, shape), torch.randint(gpt.words, shape).flatten()


def step_of(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    reduce: Callable[[], object],
    clear: Callable[[], object],
) -> Callable[[], None]:
    """Run a training step: forward, backward, reduction, update."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        clear()
        nn.functional.cross_entropy(model(inputs), target).backward()
        reduce()
        optimizer.step()

    return step


def measure(rows: Rows, device: Device, model_name: str, reducer: str) -> None:
    """Measure one reducer on one model, alternating with plain torch."""
    model, inputs, target = model_and_batch(model_name, device)
    plain = step_of(model, inputs, target, lambda: None, lambda: model.zero_grad(set_to_none=False))
    other, inputs, target = model_and_batch(model_name, device)
    wire = LoopbackWire(device.torch)
    whole = WholeModel(other, registry.load("reducers", reducer)())

    def reduce() -> None:
        whole.collect()
        whole(wire, 0.01)

    ours = step_of(other, inputs, target, reduce, whole.zero_)
    seconds = device.medians([("plain", plain), ("ours", ours)])
    before, more = 1e3 * seconds["plain"], 1e3 * (seconds["ours"] - seconds["plain"])
    rows.measured(
        f"{model_name} {reducer}",
        f"{before:.2f} ms plain, {more:+.2f} ms, × {1 + more / before:.3f}",
        goal="",
        is_reached=None,
    )


def launches(work: Callable[[], object], device: Device) -> int:
    """Return the number of kernels and copies that a call launches; in a rehearsal, of torch's ops."""
    kind = torch.profiler.ProfilerActivity.CPU if device.rehearsal else torch.profiler.ProfilerActivity.CUDA
    device.sync()
    with torch.profiler.profile(activities=[kind]) as profile:
        work()
        device.sync()
    events = profile.events() or []
    if device.rehearsal:
        return len(events)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)


def count(rows: Rows, device: Device, reducer: str) -> None:
    """Count the launches of one reduction by number of layers, and the host's synchronisations."""
    numel = 2**12 if device.rehearsal else 2**22
    counts = {}
    for layers in (1, 64):
        made = registry.load("reducers", reducer)()
        shapes = [(f"layer {i}", (numel // layers // 32, 32)) for i in range(layers)]
        feedback = ErrorFeedback(made, Layout.of(shapes, made.grouping)).to(device.torch)
        wire = LoopbackWire(device.torch)
        made.begin_epoch(0, 0.1, wire)
        grad_N = torch.randn(numel, device=device.torch)
        feedback(grad_N.clone(), wire)
        given = [grad_N.clone() for _ in range(2)]
        counts[layers] = launches(lambda: feedback(given[0], wire), device)  # noqa: B023
        if layers == 64 and not device.rehearsal:
            count = synchronisations(lambda: feedback(given[1], wire))  # noqa: B023
            allowed = 1 if reducer in SYNCHRONISES else 0
            rows.measured(
                f"synchronisations of {reducer}", str(count), goal=f"≤ {allowed}", is_reached=count <= allowed
            )
    rows.measured(
        f"launches of {reducer}, 1 and 64 layers",
        f"{counts[1]} and {counts[64]}",
        goal="the same",
        is_reached=None if device.rehearsal else counts[64] <= counts[1] + 4,
    )


def synchronisations(work: Callable[[], object]) -> int:
    """Return how often torch calls wait for the GPU; the extension's own waits are not counted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def run(rows: Rows, device: Device) -> None:
    """Count launches, then measure steps, those of the most used methods first."""
    names = [*FIRST, *(name for name in registry.names("reducers") if name not in FIRST)]
    names = names[:4] if device.rehearsal else names
    for name in names:
        if rows.late:
            break
        with rows.check(f"count {name}"):
            count(rows, device, name)
    for model_name in ("resnet50", "gpt"):
        for name in names:
            if rows.late:
                rows.add(f"{model_name} from {name} on", "cut off")
                return
            with rows.check(f"step of {model_name}, {name}"):
                measure(rows, device, model_name, name)
