"""Section `ops`: every op on the device against its plain-torch reference and the CPU kernel, to the bit.

Sizes from 0 to 1e8; ties, constants, denormals, zeros of both signs, NaN and infinity (tests/vectors.py). The
tests of the ops, with torch's opcheck, run on the GPU too. Compute-sanitizer, if installed, runs on small
sizes.
"""
# N = elements of a vector

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.gpu.ops_runs import RUNS, Run, uncalled
from benchmarks.gpu.rows import Rows
from sage.ops import native

ROOT = Path(__file__).parents[2]
SMALL = (0, 1, 31, 32, 33, 63, 64, 65, 1000, 16_384, 16_385, 200_003)
LARGE = (1_000_000, 10_000_000, 100_000_000)
REPEATS = 3


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
    unseen = uncalled(device.kind)
    rows.add("every op is compared", "failed" if unseen else "ok", ", ".join(unseen))
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
    """Run the tests of the ops that have a device as parameter, torch's opcheck among them, on this device.

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
        "tests/comm/test_packing.py",
    ]
    word = "published_numbers or by_hand" if device.rehearsal else "cuda"
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*command, "-k", word], cwd=ROOT, env=alone, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    if done.returncode not in (0, 5):  # 5: no test was selected
        raise AssertionError(" ".join(lines[-6:]) or done.stderr[-300:])
    rows.add("tests/ops", "measured", lines[-1] if lines else "")


SANITIZED = """
from benchmarks.gpu.ops_runs import RUNS
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
