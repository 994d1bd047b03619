"""Measures a reducer for `goals.py`: its passes relative to `add_`, its temporary memory, and GRACE's class.

A repeat runs every candidate once, in random order, on the same gradient: `add_`, the reducer on a wire
without a network for each W (sage/bench/loopback_wire.py), and the same method in GRACE's form. Three
gradients of N(0, 1) are used in turn, and every candidate keeps its own residual between steps, as in
training. Restoring the gradient is not timed. Ratios are computed per repeat.
"""
# N = elements of the vector, W = payloads that are decoded into one mean

import ctypes
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import grace_class
import torch
from goal_table import CASTS, LEVELS, LOW_RANK
from torch import Tensor

from sage import ops, registry
from sage.bench.loopback_wire import LoopbackWire
from sage.bench.repetitions import Case, cases_of
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.reduction.reducer import Memory

Shapes = list[tuple[str, tuple[int, ...]]]
CPU = torch.device("cpu")
DENSITY = grace_class.DENSITY
WARM_UP = 3
"""Repeats that are not counted: controllers converge, and buffers are allocated."""
MEMORY_FILE = Path("/proc/self/clear_refs")


@dataclass
class Measured:
    """The seconds of each candidate by repeat, and the figures that are measured once."""

    spec: str
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: float | None = None
    """Peak temporary memory as a multiple of the vector's size."""
    products: float | None = None
    """Time of a reduction as a multiple of that of its matrix products, QRs and SVDs."""

    def over(self, name: str, base: str) -> tuple[float, float, float]:
        """Quartiles of the ratio per repeat: lower, median, upper."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        low, median, high = statistics.quantiles([a / b for a, b in pairs], n=4, method="inclusive")
        return low, median, high


def resnet18() -> Shapes:
    """The layers of ResNet-18 for CIFAR-10: 11,173,962 parameters."""
    with torch.device("meta"):
        model = registry.load("models", "resnet")(depth=18, num_classes=10)
    return [(name, tuple(weight.shape)) for name, weight in model.named_parameters()]


def matrix(numel: int) -> Shapes:
    """One matrix of 1,024 columns with about the same number of elements."""
    return [("matrix", (max(1, numel // 1024), 1024))]


def reducer_of(case: Case, shapes: Shapes) -> ErrorFeedback:
    """Return the reducer with a residual. Random quantisers need none, but their goal includes it."""
    reducer = case.make(**case.options)
    memory: Memory | None = "residual" if case.name in LEVELS else None
    return ErrorFeedback(reducer, Layout.of(shapes, reducer.grouping), memory=memory)


def measure(
    spec: str, shapes: Shapes, world_sizes: Sequence[int], repeats: int, seconds: float, *, grace: bool
) -> Measured:
    """Measure one reducer, for at most `seconds` but at least five repeats."""
    (case,) = cases_of(spec, [DENSITY])
    torch.manual_seed(0)
    n = Layout.of(shapes).numel
    gradients = [torch.randn(n) for _ in range(3)]
    grad_N, sum_N = torch.empty(n), torch.zeros(n)
    measured = Measured(spec)
    candidates: dict[str, Callable[[], dict[str, float]]] = {
        "add_": timed("add_", lambda: sum_N.add_(grad_N))
    }
    for world_size in world_sizes:
        candidates[f"W={world_size}"] = ours(case, shapes, world_size, grad_N)
    method = grace_class.METHODS.get(spec.partition(":")[0]) if grace else None
    if method is not None:
        layers = grad_N.split([torch.Size(shape).numel() for _, shape in shapes])
        residuals = [torch.zeros_like(layer) for layer in layers]
        candidates["grace"] = timed("grace", lambda: grace_class.step(method, layers, residuals))
    if spec in CASTS:
        dtype = torch.float16 if spec == "fp16" else torch.bfloat16
        candidates["cast"] = timed("cast", lambda: grad_N.to(dtype))
    order, end = random.Random(0), time.perf_counter() + seconds
    for repeat in range(WARM_UP + repeats):
        if repeat >= WARM_UP + 5 and time.perf_counter() > end:
            break
        for name in order.sample(list(candidates), len(candidates)):
            grad_N.copy_(gradients[repeat % 3])
            for what, elapsed in candidates[name]().items():
                if repeat >= WARM_UP:
                    measured.seconds[what].append(elapsed)
        sum_N.zero_()
    feedback, wire = reducer_of(case, shapes), LoopbackWire(CPU)
    feedback.reducer.begin_epoch(0, 0.1, wire)
    for gradient_N in gradients:
        feedback(grad_N.copy_(gradient_N), wire)
    grad_N.copy_(gradients[0])
    peak = peak_bytes(lambda: feedback(grad_N, wire))
    measured.memory = None if peak is None else peak / (4 * n)
    if spec in LOW_RANK:
        measured.products = over_products(lambda: feedback(grad_N.copy_(gradients[1]), wire))
    return measured


def timed(name: str, work: Callable[[], object]) -> Callable[[], dict[str, float]]:
    """A candidate with one time."""

    def run() -> dict[str, float]:
        start = time.perf_counter()
        work()
        return {name: time.perf_counter() - start}

    return run


def ours(case: Case, shapes: Shapes, world_size: int, grad_N: Tensor) -> Callable[[], dict[str, float]]:
    """Return the reducer as a candidate with two times: until its last collective, and after it."""
    feedback, wire = reducer_of(case, shapes), LoopbackWire(CPU, world_size)
    feedback.reducer.begin_epoch(0, 0.1, wire)

    def run() -> dict[str, float]:
        _, compress, decode = wire.timed(lambda: feedback(grad_N, wire))
        return {f"compress W={world_size}": compress, f"decode W={world_size}": decode}

    return run


def peak_bytes(work: Callable[[], object]) -> int | None:
    """Return the maximum growth of resident memory during a call, in bytes; None if Linux does not report it.

    The kernel's high-water mark counts everything that is touched: torch's tensors and the buffers of native
    code. Freed heap is returned to the kernel first, since allocations within it would not be counted.
    """
    if not os.access(MEMORY_FILE, os.W_OK):
        return None
    ctypes.CDLL(None).malloc_trim(0)
    MEMORY_FILE.write_text("5")  # resets the high-water mark (man 5 proc)
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::mv", "aten::addmv", "aten::dot")
FACTORISATIONS = ("aten::linalg_qr", "aten::_linalg_svd", "aten::linalg_vector_norm", "aten::geqrf")


def over_products(work: Callable[[], object]) -> float:
    """Return a call's time as a multiple of that of its matrix products, QRs and SVDs.

    `ops.thin_product` also adds the gradient, and `ops.write_product` forms the mean and the residual, so
    their products are timed alone: all of a call, one after the other, on the same memory. The others are
    timed by torch's profiler.
    """
    products: list[Callable[[], object]] = []
    thin, write = ops.thin_product, ops.write_product

    def spied_thin(
        matrix: Tensor, basis: Tensor, *, transposed: bool = False, grad: Tensor | None = None
    ) -> Tensor:
        products.append(partial(thin, matrix, basis.clone(), transposed=transposed))
        return thin(matrix, basis, transposed=transposed, grad=grad)

    def spied_write(left: Tensor, right: Tensor, out: Tensor, signal: Tensor | None = None) -> None:
        products.append(partial(torch.mm, left.clone(), right.clone(), out=out))
        write(left, right, out, signal)

    with (
        mock.patch.object(ops, "thin_product", spied_thin),
        mock.patch.object(ops, "write_product", spied_write),
    ):
        work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    keys = (*PRODUCTS, *FACTORISATIONS)
    needed = sum(event.cpu_time_total for event in profile.key_averages() if event.key in keys) / 1e6
    whole = _median_seconds(work)
    return whole / (needed + _median_seconds(lambda: [product() for product in products]))


def _median_seconds(work: Callable[[], object]) -> float:
    """Return the median time of five calls."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
