"""Section `speed`: kernels relative to `add_`, a copy and torch.topk; compress and decompress of reducers.

Kernels are timed by CUDA events. The reducers' table is that of `sage bench compress`, as in the
microbenchmarks of the utility study and of SIDCo.
"""
# N = elements of the vector, K = elements kept

import statistics

import torch

from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import Rows
from sage import ops, registry
from sage.bench.repetitions import cases_of, inputs, reduce_once

RANKS, GROUPS = 4, 50


def kernels(rows: Rows, device: Device, n: int, density: float) -> None:
    """Measure fused selection, exact top-k and the sparse mean at one size and density."""
    grad_N = torch.randn(n, device=device.torch)
    residual_N, out_N = torch.zeros_like(grad_N), torch.empty_like(grad_N)
    k = max(1, int(n * density))
    threshold = float(grad_N.abs().topk(k).values[-1])
    at_M = torch.cat([torch.randperm(n, device=device.torch)[:k].sort().values.int() for _ in range(RANKS)])
    values_M = torch.randn(at_M.numel(), device=device.torch)
    bounds = [n * group // GROUPS for group in range(GROUPS + 1)]
    counts = [k // GROUPS] * GROUPS
    seconds = device.medians(
        [
            ("add_", lambda: residual_N.add_(grad_N)),
            ("copy", lambda: out_N.copy_(grad_N)),
            ("torch.topk", lambda: grad_N.abs().topk(k, sorted=False)),
            ("select", lambda: ops.take_above(grad_N, residual_N.zero_(), threshold)),
            ("zero", residual_N.zero_),
            ("top", lambda: ops.take_top(grad_N, residual_N.zero_(), [0, n], [k])),
            ("top of 50 groups", lambda: ops.take_top(grad_N, residual_N.zero_(), bounds, counts)),
            ("mean", lambda: ops.scatter_mean(values_M, at_M, [k] * RANKS, out_N)),
        ]
    )
    for name in (
        "select",
        "top",
        "top of 50 groups",
    ):  # zeroing between two calls is not part of the sparse mean
        seconds[name] = max(1e-9, seconds[name] - seconds["zero"])
    label = f"n = {n:g}, d = {density:g}"
    times = ", ".join(f"{name} {1e6 * time:.0f} µs" for name, time in seconds.items())
    rows.add(f"kernels, {label}", "measured", times)
    goal = None if device.rehearsal or n < 10_000_000 else True
    share = seconds["add_"] / seconds["select"]
    rows.measured(
        f"select, {label}", f"{share:.2f} of add_", goal="≥ 0.8 from 1e7", is_reached=goal and share >= 0.8
    )
    passes, faster = seconds["top"] / seconds["add_"], seconds["torch.topk"] / seconds["top"]
    is_reached = goal and passes <= 3 and (n < 100_000_000 or faster >= 10)
    text = f"{passes:.2f} × add_, {faster:.1f} times as fast as torch.topk"
    rows.measured(f"top, {label}", text, goal="≤ 3 × add_; ≥ 10 × torch.topk at 1e8", is_reached=is_reached)
    # Time of moving the necessary bytes at a copy's speed.
    floor = seconds["copy"] * (4 * n + 8 * at_M.numel()) / (8 * n)
    rows.measured(
        f"sparse mean, {label}",
        f"{floor / seconds['mean']:.2f} of its bytes' floor",
        goal="≥ 0.6",
        is_reached=goal and floor / seconds["mean"] >= 0.6,
    )
    headline = seconds["torch.topk"] / seconds["select"]
    rows.add(f"selection over torch.topk, {label}", "measured", f"× {headline:.1f} (SAGE's headline: 23.62)")


def reducers(rows: Rows, device: Device, n: int, density: float) -> None:
    """Measure every reducer's compress and decompress on N(0, 1)."""
    (given,) = inputs([n / 2**18], [], 0, 1, 0, device.torch)
    names = ("exact", "topk", "onebit") if device.rehearsal else registry.names("reducers")
    for name in names:
        if rows.late:
            rows.add(f"reducers from {name} on, n = {n:g}", "cut off")
            return
        if name in ("svd", "atomo") and n > 1_000_000:
            continue  # an SVD of 10,000 × 1,024 elements takes longer than the section's time
        with rows.check(f"reducer {name}, n = {n:g}, d = {density:g}"):
            (case,) = cases_of(name, [density])
            rounds = [reduce_once(case, given) for _ in range(2 if device.rehearsal else 6)][1:]
            compress = statistics.median(repeat.compress for repeat in rounds)
            decode = statistics.median(repeat.decompress for repeat in rounds)
            text = f"compress {1e3 * compress:.3f} ms, decompress {1e3 * decode:.3f} ms"
            rows.add(name, "measured", f"{text}, {rounds[-1].payload:,} B")


def run(rows: Rows, device: Device) -> None:
    """Measure kernels at every size and density, then reducers, the largest size last."""
    for n in device.sizes:
        for density in device.densities:
            if rows.late:
                rows.add(f"kernels from n = {n:g}, d = {density:g} on", "cut off")
                break
            with rows.check(f"kernels run, n = {n:g}, d = {density:g}"):
                kernels(rows, device, n, density)
    for n in device.sizes:
        for density in (0.01,) if n != 10_000_000 else device.densities:
            reducers(rows, device, n, density)
