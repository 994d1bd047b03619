"""Section `ops`: every op on the device against its plain-torch reference and the CPU kernel, to the bit.

Sizes from 0 to 1e8; ties, constants, denormals, zeros of both signs, NaN and infinity (tests/vectors.py). The
tests of the ops, with torch's opcheck, run on the GPU too. Compute-sanitizer, if installed, runs on small
sizes.
"""
# N = elements of a vector, K = elements selected

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.gpu.group_runs import BY_GROUP, COVERED_BY_GROUP
from benchmarks.gpu.rows import Rows
from sage import ops
from sage.ops import native

ROOT = Path(__file__).parents[2]
SMALL = (0, 1, 31, 32, 33, 63, 64, 65, 1000, 16_384, 16_385, 200_003)
LARGE = (1_000_000, 10_000_000, 100_000_000)
REPEATS = 3
Run = Callable[[Tensor, Tensor], list[Tensor]]
"""Applies ops to a gradient and a residual, which they may overwrite; returns all results."""


def above(grad_N: Tensor, residual_N: Tensor, threshold: float) -> list[Tensor]:
    """Run `take_above`, `select_above`, `count_above` and the histogram."""
    selected = ops.select_above(grad_N, threshold)
    count = torch.tensor(ops.count_above(grad_N, threshold))
    bins = torch.zeros(ops.NUM_BINS, dtype=torch.int32, device=grad_N.device)
    selection = ops.take_above(grad_N, residual_N, threshold, bins=bins, every=2)
    return [selected, count, *selection, residual_N, grad_N, bins, ops.histogram(residual_N)]


def top(grad_N: Tensor, residual_N: Tensor, density: float) -> list[Tensor]:
    """Run `take_top` on three groups, and `select_top`."""
    n = grad_N.numel()
    bounds = [0, n // 7, n // 2, n]
    counts = [int(density * (b - a)) for a, b in zip(bounds, bounds[1:], strict=False)]
    selected = ops.select_top(grad_N, sum(counts))
    return [selected, *ops.take_top(grad_N, residual_N, bounds, counts), residual_N, grad_N]


def sparse_mean(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Run `scatter_mean` of two ranks, `clear`, and the codes of indices."""
    n = grad_N.numel()
    at_K = ops.select_above(grad_N, 0.5).int()
    mean_N = ops.scatter_mean(
        torch.cat([grad_N[at_K.long()], residual_N[at_K.long()]]),
        torch.cat([at_K, at_K]),
        [at_K.numel()] * 2,
        torch.empty_like(grad_N),
    )
    results = [mean_N.clone(), ops.clear(mean_N, at_K)]
    gaps_B, bits_B = ops.encode_gaps(at_K), ops.encode_bitmap(at_K, n)
    return [*results, gaps_B, ops.decode_gaps(gaps_B, at_K.numel()), bits_B, ops.decode_bitmap(bits_B)]


def packed(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Pack and unpack codes of 1 to 8 bits."""
    n = grad_N.numel()
    results: list[Tensor] = []
    for bits in (1, 2, 3, 4, 8):
        codes_N = (grad_N.view(torch.int32) & (1 << bits) - 1).to(torch.uint8)
        bytes_B = ops.pack(codes_N, bits)
        results += [bytes_B, ops.unpack(bytes_B, bits, n)]
    return results


def signs(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Run statistics of three groups, signs with the error, the mean of two payloads, and Philox's bits."""
    n = grad_N.numel()
    sizes = [n // 7, n // 2 - n // 7, n - n // 2]
    results = [
        row_G for kind in ops.Kind for row_G in ops.statistics(grad_N, residual_N.clone(), sizes, kind)
    ]
    low_G = torch.tensor([-1.0, -0.5, -0.3], device=grad_N.device)
    bytes_B = ops.sign_bits(residual_N, sizes, low_G, -low_G, keep=True)
    low_WG, bytes_WB = torch.stack([low_G, 3 * low_G]), torch.stack([bytes_B, bytes_B.flip(0)])
    mean_N = ops.mean_signs(torch.empty_like(grad_N), bytes_WB, sizes, low_WG, -low_WG, divisor=2)
    return [*results, residual_N, bytes_B, mean_N, ops.random_bits(n, 7, device=grad_N.device)]


RUNS: dict[str, Run] = {
    **{f"above {t:g}": partial(above, threshold=t) for t in (0.0, 0.5, 3.0)},
    **{f"top {d:g}": partial(top, density=d) for d in (0.001, 0.1, 1.0)},
    "sparse mean and indices": sparse_mean,
    "packing": packed,
    "statistics, signs and their mean": signs,
    **BY_GROUP,
}
COVERED = [
    "select_",
    "top_",
    "count_above",
    "histogram_",
    "scatter_mean_",
    "clear_",
    "pack",
    "unpack",
    "random_bits_",
    "statistics_",
    "sign_bits_",
    "mean_signs_",
    *COVERED_BY_GROUP,
    "encode_gaps",
    "decode_gaps",
    "encode_bitmap",
    "decode_bitmap",
]
"""The ops that `RUNS` calls; the tests of the ops cover the others on small sizes."""


@contextmanager
def plain() -> Iterator[None]:
    """Run without the extension, as with SAGE_NATIVE=0."""
    before, native.MISSING = native.MISSING, "SAGE_NATIVE=0"
    try:
        yield
    finally:
        native.MISSING = before


def compare(run: Run, n: int, seed: int, device: Device) -> None:
    """Compare one op at one size on every kind of vector (two kinds from 1e6 on)."""
    sys.path.append(str(ROOT / "tests"))
    from vectors import KINDS, assert_same

    random.seed(seed)
    torch.manual_seed(seed)
    for kind in KINDS[:-1] if n < 1_000_000 else KINDS[:2]:
        given = [kind(n).float() for _ in range(2)]
        if n == 0:
            given = [torch.empty(0), torch.empty(0)]

        def once(where: str) -> list[Tensor]:
            grad_N, residual_N = (x.to(where, copy=True) for x in given)  # noqa: B023
            return [x.cpu() for x in run(grad_N, residual_N)]

        ours = once(device.kind)
        with plain():
            expected = once(device.kind)
        others = [expected, once("cpu")] + [once(device.kind) for _ in range(REPEATS - 1)]
        for other in others:
            for left, right in zip(ours, other, strict=True):
                assert_same(left, right)


def run(rows: Rows, device: Device) -> None:
    """Run the comparisons, the tests with opcheck, and compute-sanitizer."""
    unseen = sorted(set(native.OPS) - set(COVERED))
    if unseen:
        rows.add("ops that are covered by tests/ops only", "measured", ", ".join(unseen))
    sizes = SMALL[:-2] if device.rehearsal else (*SMALL, *LARGE)
    rows.while_in_time(
        [
            (f"{name}, n = {n:,}", partial(compare, run_op, n, seed, device))
            for seed, n in enumerate(sizes)
            for name, run_op in RUNS.items()
        ][:: 4 if device.rehearsal else 1]
        + [
            ("not finite", partial(not_finite, device)),
            ("tests/ops with opcheck", partial(tests, rows, device)),
        ]
    )
    sanitize(rows, device)


def not_finite(device: Device) -> None:
    """Compare on NaN and infinity, also in the last element of a tile."""
    sys.path.append(str(ROOT / "tests"))
    from vectors import KINDS, assert_same

    for n in (1, 65, 1000, 16_385):
        given = KINDS[-1](n).float()
        for name, run_op in RUNS.items():
            if "mean" in name:  # the bits of NaN results are not defined
                continue
            ours = [
                x.cpu() for x in run_op(given.to(device.kind, copy=True), torch.zeros(n, device=device.kind))
            ]
            with plain():
                theirs = run_op(given.clone(), torch.zeros(n))
            for left, right in zip(ours, theirs, strict=True):
                assert_same(left, right)


PYTEST = """
import hypothesis, pytest, sys
hypothesis.settings.register_profile("gpu", deadline=None)
hypothesis.settings.load_profile("gpu")
sys.exit(pytest.main(sys.argv[1:]))
"""


def tests(rows: Rows, device: Device) -> None:
    """Run the tests of the ops that have a device as parameter, on this device.

    They run without tests/conftest.py, which needs pytest-xdist.
    """
    command = [
        sys.executable,
        "-c",
        PYTEST,
        "--noconftest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/ops",
    ]
    word = "published_numbers or by_hand" if device.rehearsal else "cuda or torch_finds_nothing_wrong"
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*command, "-k", word], cwd=ROOT, env=alone, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    if done.returncode not in (0, 5):  # 5: no test was selected
        raise AssertionError(" ".join(lines[-6:]) or done.stderr[-300:])
    rows.add("tests/ops", "measured", lines[-1] if lines else "")


SANITIZED = """
from benchmarks.gpu.ops_checks import RUNS
import torch
for n in (1, 65, 1000, 16385):
    for run in RUNS.values():
        run(torch.randn(n, device="cuda"), torch.randn(n, device="cuda"))
torch.cuda.synchronize()
"""


def sanitize(rows: Rows, device: Device) -> None:
    """Run memcheck and racecheck on small sizes."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if device.rehearsal or not os.access(tool, os.X_OK):
        rows.add("compute-sanitizer", "skipped", "rehearsal" if device.rehearsal else "not installed")
        return
    for check in ("memcheck", "racecheck"):
        if rows.late:
            rows.add(f"compute-sanitizer {check}", "cut off")
            continue
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", SANITIZED]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        except subprocess.TimeoutExpired:
            rows.add(f"compute-sanitizer {check}", "cut off", "after 60 s")
            continue
        last_line = done.stdout.strip().splitlines()[-1:]
        rows.add(f"compute-sanitizer {check}", "failed" if done.returncode else "ok", *last_line)
