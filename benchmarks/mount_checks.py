"""Measures the cost of a mount's checks relative to a step of ResNet-18 on CIFAR-sized images.

    python benchmarks/mount_checks.py

The script runs in one process with one thread. It prints the milliseconds of a step, and of each check as a
share of the step.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

import sage
from sage import registry
from sage.mount import optimizers
from sage.mount.step import is_finite, norm

REPEATS = 20


def milliseconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median time of one call in milliseconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    meeting = tempfile.mkdtemp()
    dist.init_process_group("gloo", init_method=f"file://{meeting}/ranks", rank=0, world_size=1)
    model: nn.Module = registry.load("models", "resnet")(depth=18, num_classes=10)
    mount = sage.reduce_model(model, "topk", density=0.01)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x_BCHW, target_B = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))

    def step() -> None:
        mount.zero_grad()
        nn.functional.cross_entropy(model(x_BCHW), target_B).backward()
        mount.reduce()
        optimizer.step()

    step()
    whole = milliseconds(step, 5)
    flat = mount._whole
    parts = {
        "parameters are the mounted ones (reduce)": mount.check,
        "gradients are views of the flat vector (reduce)": flat.collect,
        "gradients are reduced, and the optimiser's (optimizer.step)": lambda: optimizers._before_step(
            optimizer, (), {}
        ),
        "gradient and residual are finite, and no mean can overflow": lambda: flat.feedback.bound(
            norm(flat.grad_N), norm
        ),
        "the mean is finite": lambda: is_finite(flat.grad_N),
        "a copy of the state, where a mean can overflow": flat.save,
    }
    print(
        f"a step: {whole:.0f} ms ({flat.grad_N.numel():,} elements, batch 32, load {os.getloadavg()[0]:.1f})"
    )
    for name, work in parts.items():
        duration = milliseconds(work)
        print(f"{name}: {duration:.2f} ms, {duration / whole:.2%}")


if __name__ == "__main__":
    main()
