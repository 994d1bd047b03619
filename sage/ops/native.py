"""The native extension, if it is built: `csrc/`, loaded as `torch.ops.sage`. See `csrc/README.md`.

SAGE_NATIVE=0 disables it. Without it `sage.ops` runs the plain-torch references, with bitwise identical
results, and logs one line.
"""

import importlib.util
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import SymInt, Tensor
from torch import distributed as dist

_log = logging.getLogger(__name__)


OLDEST_TORCH = 2, 10
"""The version whose stable ABI the extension is built for, as `STABLE_ABI` in setup.py."""


def _load() -> str | None:
    """Load the extension; returns the reason if it is not available, else None."""
    if os.environ.get("SAGE_NATIVE") == "0":
        return "SAGE_NATIVE=0"
    if _release(torch.__version__) < OLDEST_TORCH:
        return f"it needs torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or later, and this is {torch.__version__}"
    spec = importlib.util.find_spec("sage._C")
    if spec is None or spec.origin is None:
        return f"it was not built: {_cure()}"
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        return f"{spec.origin} does not load: {error}"
    return None


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number of a version of torch, also of a development version.

    >>> _release("2.10.0a0+git1234567")
    (2, 10)
    """
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _cure(root: Path = Path(__file__).parents[2]) -> str:
    """Command that builds the extension for the running Python: in a checkout, or by reinstalling.

    >>> _cure(Path("/nowhere")).partition(" -m ")[2]
    'pip install --force-reinstall --no-deps CHECKOUT` with a C++ compiler installs SAGE with it'
    """
    python = shlex.quote(sys.executable or "python")
    if (root / "setup.py").is_file() and (root / "csrc").is_dir():
        command = f"cd {shlex.quote(str(root))} && {python} setup.py build_ext --inplace"
        return f"`{command}` with a C++ compiler builds it"
    return (
        f"`{python} -m pip install --force-reinstall --no-deps CHECKOUT` with a C++ compiler installs SAGE "
        "with it"
    )


MISSING = _load()
"""Reason why the extension is not available; None if it is."""

_has_warned = False


def _warn_once() -> None:
    global _has_warned
    if _has_warned or MISSING == "SAGE_NATIVE=0":
        return
    _has_warned = True
    if not dist.is_initialized() or dist.get_rank() == 0:
        _log.warning("no native extension; sage.ops runs in plain torch, several times slower: %s", MISSING)


OPS: list[str] = []
"""Names of all ops in `torch.ops.sage`, in the order of their registration."""
_CPU: set[str] = set()
_CUDA: set[str] = set()


def on(key: str) -> frozenset[str]:
    """The ops that have a kernel for one of torch's dispatch keys, "CPU" or "CUDA"."""
    return frozenset(op for op in OPS if MISSING is None and _has_kernel(op, key))


def _has_kernel(op: str, key: str) -> bool:
    if not hasattr(torch.ops.sage, op):  # an extension older than this file; torch raises an error below
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"sage::{op}", key))


def register(op: str, fake: Callable[..., object]) -> None:
    """Register an op that csrc/ops.cpp declares, before `takes` is called for it.

    Args:
        op: Name of the op in `torch.ops.sage`.
        fake: Returns the shape and dtype of its result for torch.compile; a size may depend on the data.
    """
    OPS.append(op)
    if MISSING is not None:
        return
    for key, ops in (("CPU", _CPU), ("CUDA", _CUDA)):
        if _has_kernel(op, key):
            ops.add(op)
    if op in _CPU or op in _CUDA:
        torch.library.register_fake(f"sage::{op}", fake)
    else:
        _log.warning("the native extension lacks %s, which runs in plain torch: %s", op, _cure())


def unknown(x: Tensor, *dtypes: torch.dtype) -> tuple[Tensor, ...]:
    """Vectors of one length that depends on the data, for a fake."""
    size = torch.library.get_ctx().new_dynamic_size()
    return tuple(x.new_empty((size,), dtype=dtype) for dtype in dtypes)


def vector(x: Tensor, n: int | SymInt, dtype: torch.dtype) -> Tensor:
    """A vector of n elements, for a fake."""
    return x.new_empty((n,), dtype=dtype)


def takes(op: str, x: Tensor, *others: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the extension's `op` supports these vectors; the references support all that torch does.

    Args:
        op: Its name in `torch.ops.sage`.
        x: A vector, which must have the dtype `dtype`.
        others: Vectors that must be on the same device and, if floating point, have the same dtype.
        dtype: The dtype that the op supports.
    """
    if MISSING is not None:
        _warn_once()
        return False
    # This runs before every op, with cold caches after a model's step, so each check is the cheapest one
    # available. `x.device.type`, which creates a string, costs as much as three others.
    if x.dtype is not dtype or not x.is_contiguous():
        return False
    if not (x.is_cpu and op in _CPU or x.is_cuda and op in _CUDA):
        return False
    for v in others:
        if v is not None and not (
            v.device == x.device and v.is_contiguous() and (v.dtype is dtype or not v.is_floating_point())
        ):
            return False
    return True
