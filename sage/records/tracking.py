"""What a tracker is: it gets the figures of a run while it trains, beside TensorBoard.

A tracker is one file in `sage/records/trackers/`, named like the tracker, or a module of another package. It
exports `TRACKER`, a class as `Tracker`, and `PACKAGES`, the packages that it imports. `sage run --track NAME`
starts it in a process of its own (`sage.records.tracker_process`), so it may block, fail or end without an
effect on the run.
"""

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from sage.output.text import clean_text
from sage.records.flat import Plain
from sage.validate import known, shown


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a tracker gets when a run starts or resumes."""

    name: str
    """Name of the run folder."""
    runs: Path
    """Folder of the run folders."""
    folder: Path
    """The tracker's own folder, which `--fresh` removes: `trackers/NAME` in the run folder."""
    config: Mapping[str, Plain]
    """The run's configuration, with dotted names."""
    earlier: str | None
    """The tracker's `id` at the last start of this run; None at the first start."""
    note: Callable[[str], None]
    """Shows a line to the user once, such as why figures are only written to a file."""


class Tracker(Protocol):
    """What the class exported as `TRACKER` does. An exception ends the tracker with one line for the user."""

    id: str
    """The tracker's name of this run; a run that resumes gets it as `Start.earlier`."""

    def __init__(self, start: Start) -> None: ...

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Take figures by their tags, such as `train/loss`; steps do not decrease until a run resumes."""
        ...

    def histogram(self, name: str, counts: Sequence[int], edges: Sequence[float], step: int) -> None:
        """Take a histogram: B counts, and the B + 1 edges of their bins."""
        ...

    def result(self, result: Mapping[str, Any]) -> None:
        """Take the content of `result.json`, at the end of a finished run."""
        ...

    def close(self, *, is_finished: bool) -> None:
        """Send what is left. `is_finished` is False if the run was stopped or has failed."""
        ...


def names() -> list[str]:
    """List the trackers of SAGE in alphabetical order."""
    folder = Path(__file__).with_name("trackers")
    return sorted(path.stem for path in folder.glob("*.py") if path.stem[0] != "_")


def check(chosen: Sequence[str]) -> None:
    """Refuse a tracker that cannot work here, before training.

    Raises:
        ValueError: There is no such tracker, it is named twice, or a package that it needs is not installed.
    """
    for name in chosen:
        if chosen.count(name) > 1:
            raise ValueError(f"track has {shown(name)} {chosen.count(name)} times: name each tracker once")
        packages: Sequence[str] = getattr(load(name), "PACKAGES", ())
        if absent := [package for package in packages if not _is_installed(package)]:
            wanted = f"'sage-bench[{name}]'" if name in names() else " ".join(absent)
            raise ValueError(
                f"the tracker {name} needs {', '.join(absent)}, not installed here: pip install {wanted}, or "
                f"leave --track {name} out"
            )


def load(name: str) -> ModuleType:
    """Import the module of a tracker, which imports its packages only when it is used.

    Raises:
        ValueError: There is no such tracker, or its module cannot be imported or exports no TRACKER.
    """
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        path = name
    else:
        path = f"sage.records.trackers.{known('tracker', name, names())}"
    try:
        module = importlib.import_module(path)
    except Exception as error:  # a module of another package may raise any exception
        reason = f"{type(error).__name__}: {clean_text(str(error))}"
        raise ValueError(f"the tracker {shown(name)} cannot be imported: {reason}") from error
    if not hasattr(module, "TRACKER"):
        raise ValueError(f"the module {name} exports no TRACKER; add `TRACKER = ...` to it, with its class")
    return module


def _is_installed(package: str) -> bool:
    """Whether there is such a package, without importing it."""
    spec = importlib.util.find_spec(package)
    # A folder without an __init__.py is none: wandb creates a folder called wandb where it is used.
    return spec is not None and spec.origin is not None
