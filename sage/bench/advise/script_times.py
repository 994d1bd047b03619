"""Times of a script's own forward and backward, and its gradients."""
# N = elements of the flat gradient

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor, nn

from sage.bench.calibrate.gamma import Backward
from sage.bench.calibrate.gradients import Gradients
from sage.bench.calibrate.model_times import WARM_UP, ComputeTimes
from sage.bench.loopback_wire import Stopwatch
from sage.comm.wire import Wire
from sage.mount.parameters import real_shape, trainable

Step = Callable[[nn.Module], object]
"""A script's forward and backward on the model that it is given."""


def measure(model: nn.Module, step: Step, steps: int, wire: Wire) -> tuple[ComputeTimes, Gradients]:
    """Run the step some times; return this rank's times, and the gradients of the last steps.

    Args:
        model: The model, which is changed: its gradients are replaced, and buffers are updated.
        step: Runs the model forward once, and backward.
        steps: Number of steps that count, after two that do not.
        wire: The communicator of all ranks, which begin each step together.

    Raises:
        ValueError: if the step does not run the model once, or a parameter has no gradient after it.
    """
    named = trainable(model)
    device = next(iter(named.values())).device
    watch, order = Stopwatch(device), list[str]()
    num_forwards = 0

    def forward(*_: object) -> None:
        nonlocal num_forwards
        num_forwards += 1
        watch.stamp()

    def ready(name: str) -> Callable[[Tensor], None]:
        def mark(_: Tensor) -> None:
            order.append(name)
            watch.stamp()

        return mark

    hooks = [model.register_forward_hook(forward)]
    hooks += [p.register_post_accumulate_grad_hook(ready(name)) for name, p in named.items()]
    times, gradients = ComputeTimes(ready={name: [] for name in named}), list[Tensor]()
    try:
        for number in range(WARM_UP + steps):
            for parameter in named.values():
                parameter.grad = None
            wire.texts("")  # a barrier, so that all ranks compute at the same time
            watch, num_forwards = Stopwatch(device), 0
            order.clear()
            watch.stamp()
            step(model)
            watch.stamp()
            missing = sorted(name for name, p in named.items() if p.grad is None)
            if num_forwards != 1 or missing:
                raise ValueError(_refusal(num_forwards, missing))
            if number < WARM_UP:
                continue
            seconds, *gaps = watch.gaps()
            times.forward.append(seconds)
            times.backward.append(sum(gaps))
            for name, at in zip(order, accumulate(gaps), strict=False):
                times.ready[name].append(at)
            gradients.append(torch.cat([_flat(p) for p in named.values()]))
            del gradients[:-2]
    finally:
        for hook in hooks:
            hook.remove()
    times.optimizer.append(0.0)
    shapes = [(name, real_shape(p)) for name, p in named.items()]
    always = frozenset(name for name, p in named.items() if p.is_complex())
    return times, Gradients(shapes, always, gradients)


def backward_of(model: nn.Module, step: Step, device: torch.device) -> Backward:
    """Return a function that takes one step, as `calibrate.gamma.measure` asks for it."""

    def backward(begin: Callable[[], None]) -> float:
        watch = Stopwatch(device)

        def forward_ended(*_: object) -> None:
            begin()
            watch.stamp()

        hook = model.register_forward_hook(forward_ended)
        try:
            step(model)
        finally:
            hook.remove()
        watch.stamp()
        return sum(watch.gaps())

    return backward


def _flat(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    grad = parameter.grad.detach()
    return (torch.view_as_real(grad) if grad.is_complex() else grad).reshape(-1).clone()


def _refusal(num_forwards: int, missing: list[str]) -> str:
    if num_forwards != 1:
        return (
            f"the step has run the model forward {num_forwards} times; it has to run the model that it is "
            "given once, and backward, as in lambda model: loss(model(x), y).backward()"
        )
    return f"the parameter {missing[0]!r} has no gradient after the step: freeze it, or use it in the loss"
