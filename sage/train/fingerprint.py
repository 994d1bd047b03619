"""Collects what must be equal on all ranks before training: settings, versions and source files."""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy
import torch

from sage import registry
from sage.config import Config
from sage.version import __version__

MAY_DIFFER = ("runs", "data_root", "timeout", "slurm", "oversubscribe", "track")
"""Settings that may differ between ranks: local paths, the timeout, options of the job and of rank 0."""

PACKAGE = Path(__file__).parents[1]
MOST_FILES = 2000
"""Maximum number of source files of a third-party package that are hashed."""


def facts(config: Config, device: torch.device) -> dict[str, str]:
    """Return this rank's settings, versions and source checksums, by name."""
    facts: dict[str, str] = {}
    for name, value in config.to_dict().items():
        if name in MAY_DIFFER:
            continue
        for option, item in value.items() if isinstance(value, dict) else [("", value)]:
            facts[f"{name}.{option}" if option else name] = json.dumps(item)
    facts["device"] = device.type
    return facts | software() | parts(config)


@cache
def software() -> dict[str, str]:
    """Return the versions of the software that affects results, and a checksum of SAGE's source files."""
    return {
        "SAGE version": __version__,
        "source files": checksum(PACKAGE, _sources(PACKAGE)),
        "commit": _commit(),
        "torch version": torch.__version__,
        "numpy version": numpy.__version__,
        "Python version": ".".join(platform.python_version_tuple()[:2]),
    }


def parts(config: Config) -> dict[str, str]:
    """Return a checksum of the source files of each third-party part (model, data set, task, reducer)."""
    chosen: list[tuple[registry.PartKind, str]] = [
        ("models", config.model),
        ("datasets", config.data),
        ("tasks", config.task),
    ]
    for name in registry.reducers_in(config.reducer):
        chosen.append(("reducers", name))
    checksums = {}
    for kind, name in chosen:
        module = sys.modules.get(getattr(registry.load(kind, name), "__module__", ""))
        file = getattr(module, "__file__", None)
        if file is None or Path(file).resolve() in _own():
            continue
        top = sys.modules.get(str(getattr(module, "__name__", "")).partition(".")[0])
        root = Path(file).parent
        files: Iterable[Path] = [Path(file)]
        if top is not None and getattr(top, "__path__", None) and getattr(top, "__file__", None):
            root = Path(str(top.__file__)).parent
            files = _sources(root)
        checksums[f"source of the {registry.KINDS[kind]} {name}"] = checksum(root, files)
    return checksums


def checksum(root: Path, files: Iterable[Path]) -> str:
    """Return 12 hexadecimal digits of a SHA-256 over the files' relative paths and contents."""
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(root).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]


def _sources(root: Path) -> list[Path]:
    """List the Python files below a folder. Direct subfolders may be symlinks, as those of the parts are."""
    folders = [root, *(path for path in sorted(root.iterdir()) if path.is_dir())]
    shallow = {path for folder in folders for path in folder.glob("*.py")}
    return sorted(shallow | set(root.rglob("*.py")))[:MOST_FILES]


@cache
def _own() -> frozenset[Path]:
    return frozenset(path.resolve() for path in _sources(PACKAGE))


def _commit() -> str:
    checkout = PACKAGE.resolve().parent
    if not (checkout / ".git").exists():
        return "none"
    command = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
