"""Builds a run's manifest: versions, machine, git commit, environment, configuration and data checksums."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import torch

from sage import storage
from sage.records.record import now
from sage.version import __version__


def manifest(
    config: Mapping[str, Any],
    checksums: Mapping[str, str],
    *,
    hosts: Sequence[str] = (),
    links: Mapping[str, Any] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the content of `manifest.json`, with machine and environment of the calling rank.

    Args:
        config: The configuration of the run.
        checksums: Checksums of the data files.
        hosts: The host of each rank.
        links: The network measurements of sage/comm/probe.py; None if the ranks are threads of one process.
        provenance: What the parts with an attribute `provenance` say of their content, such as "random
            weights" of a model or "synthetic" of a data set, by the kind of part.
    """
    cuda = torch.cuda.is_available()
    return {
        "time": now(),
        "argv": sys.argv,
        "versions": {
            "sage": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            # Gloo has no separate version: it is built into torch.
            "gloo": torch.__version__ if torch.distributed.is_gloo_available() else None,
            "nccl": _nccl_version(),
            "cuda": torch.version.cuda,
        },
        "machine": {
            "hostname": platform.node(),
            "os": platform.platform(),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        },
        "load": {"start": machine_load()},
        "hosts": list(hosts),
        "links": None if links is None else dict(links),
        "git": _git(Path(__file__).resolve().parents[2]),
        "environment": _environment(),
        "seed": config.get("seed"),
        "config": dict(config),
        "checksums": dict(checksums),
        **({"provenance": dict(provenance)} if provenance else {}),
    }


def machine_load() -> dict[str, Any]:
    """Return the load of this machine: the time, 1-minute load average, and number of runnable processes.

    A value is None if the system does not provide it.
    """
    try:
        average, *_ = os.getloadavg()
    except OSError:
        average = None
    try:
        runnable = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):  # Not Linux.
        runnable = None
    return {"time": now(), "average_1min": average, "runnable": runnable}


def add_end(folder: Path) -> None:
    """Add the machine load at the end of the run to the manifest; on failure, the manifest is unchanged."""
    path = folder / "manifest.json"
    with suppress(OSError, ValueError):
        content = storage.read_json(path, storage.MANIFEST)
        load = {**content.get("load", {}), "end": machine_load()}
        storage.write_json(path, {**content, "load": load}, storage.MANIFEST)


def host() -> str:
    """Return the node name: SLURM's inside a SLURM job, as several SLURM nodes may be one machine."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _environment() -> dict[str, str]:
    """Return the SLURM variables and those of `pararun`, without SLURM_JWT, which is a credential."""
    own = ("hostip", "port", "rank")
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name in own or (name.startswith("SLURM_") and name != "SLURM_JWT")
    }


def _nccl_version() -> str | None:
    if not torch.distributed.is_nccl_available():
        return None
    from torch.cuda import nccl

    return ".".join(map(str, nccl.version()))


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # Not Linux.
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())  # /proc/cpuinfo has no model name on Arm.


def _git(checkout: Path) -> dict[str, str | bool | None]:
    """Return the commit of the checkout and whether files are modified; None if this is no checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        # An installed copy may be inside an unrelated repository, whose commit is meaningless here.
        if Path(git("rev-parse", "--show-toplevel")) == checkout:
            return {"commit": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain") != ""}
    except (OSError, subprocess.SubprocessError):
        pass
    return {"commit": None, "dirty": None}
