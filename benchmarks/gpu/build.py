"""Section `build`: compile csrc for this GPU's architecture only, and list the native ops of CPU and GPU."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu.device import Device
from benchmarks.gpu.rows import Rows

ROOT = Path(__file__).parents[2]


def run(rows: Rows, device: Device) -> None:
    """Build the extension, except in a rehearsal, and load it."""
    if device.rehearsal:
        rows.add("extension", "skipped", "a rehearsal uses the existing one")
    else:
        major, minor = torch.cuda.get_device_capability()
        environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
        environment.pop("SAGE_NATIVE", None)
        environment.pop("SAGE_CUDA", None)
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("native extension")]
        errors = " ".join(done.stderr.split())[-300:]
        rows.add("extension", "ok" if lines else "failed", lines[0] if lines else errors)
    from sage import ops
    from sage.ops import native

    assert ops.native is native
    for key in ("CPU", "CUDA"):
        native_ops = sorted(native.on(key))
        missing = sorted(set(native.OPS) - set(native_ops))
        value = f"{len(native_ops)} of {len(native.OPS)}" + (
            f"; without: {', '.join(missing)}" if missing else ""
        )
        is_good = bool(native_ops) or key == "CUDA" and device.rehearsal
        rows.add(f"ops on {key}", "ok" if is_good else "failed", value or str(native.MISSING))
