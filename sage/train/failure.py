"""Turns an error into a one-line message and an exit status; saves the traceback of an unexpected error."""

import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch

from sage import exit_status
from sage.comm.replicas import ReplicasDiffer
from sage.comm.transport import WireError
from sage.exit_status import FAILED, FATAL
from sage.output.text import clean_text
from sage.records.run_folder import RunInUse
from sage.storage import write_text
from sage.train.divergence import Diverged

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("site-packages", "dist-packages")
SHOWN = 1500
"""Maximum length of a message, in characters."""


@dataclass(frozen=True)
class Failure:
    """The reason why a rank ends."""

    text: str
    """The message, one line."""
    status: int
    """The exit status: 2 if the same command would fail again, otherwise 1."""
    is_expected: bool
    """Whether the message is sufficient; otherwise the traceback is needed to fix the error."""
    is_consequence: bool = False
    """Whether this failure was caused by the earlier failure of another rank."""

    @property
    def is_refusal(self) -> bool:
        """Whether the settings, the data or the environment are wrong, so that the command fails again."""
        return self.is_expected and self.status == FATAL


class FirstStepFailed(RuntimeError):
    """Raised for an error in the first step of a process; the model or reducer would raise it again."""


class _Steps(Protocol):
    step: int


@contextmanager
def detect_first_step_failure(training: _Steps) -> Iterator[None]:
    """Raise `FirstStepFailed` from an unexpected error that occurs before the first step is complete."""
    first = training.step
    try:
        yield
    except (WireError, Diverged, ReplicasDiffer, ValueError, OSError):
        raise
    except Exception as error:
        if training.step == first:
            raise FirstStepFailed("the first step failed") from error
        raise


def classify(error: BaseException) -> Failure:
    """Return the message and the exit status for an error that ends a rank."""
    is_first_step = isinstance(error, FirstStepFailed)
    if isinstance(error, FirstStepFailed) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, WireError):
        return Failure(clean_text(str(error), SHOWN), FAILED, True, is_consequence=True)
    if isinstance(error, Diverged | ReplicasDiffer):
        return Failure(clean_text(str(error), SHOWN), FATAL, True)
    if isinstance(error, RunInUse):
        return Failure(clean_text(str(error), SHOWN), FATAL if error.is_fresh else FAILED, True)
    if isinstance(error, ValueError | OSError):
        return Failure(exit_status.message(error), exit_status.status_of(error), True)
    if isinstance(error, SystemExit):
        return Failure(f"{_place(error)} called sys.exit({error.code!r})", FAILED, True)
    if _is_out_of_memory(error):
        return Failure(f"out of memory: {exit_status.message(error)}", FAILED, True)
    text = f"{type(error).__name__}: {clean_text(str(error), SHOWN)}"
    again = is_first_step and not isinstance(error, torch.AcceleratorError)
    when = "the first step failed, and would fail again: " if again else ""
    status = FATAL if again else FAILED
    if _is_raised_by_a_library(error):
        return Failure(f"{when}{text} (raised by a library, called from {_place(error)})", status, False)
    if _is_own(error):
        return Failure(
            f"{when}{text} ({_place(error)}): this is a bug in SAGE, please report it", status, False
        )
    return Failure(f"{when}{text} ({_place(error)}, outside SAGE)", status, False)


def keep_traceback(folder: Path, rank: int, error: BaseException) -> str:
    """Write a traceback to the run folder; return a text with its path, or the traceback if writing fails."""
    lines = "".join(traceback.format_exception(error))
    path = folder / f"traceback-{rank}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, lines)
    except (OSError, ValueError):
        return f"; the traceback:\n{lines}"
    return f"; the traceback is in {path}"


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _frames(error: BaseException) -> list[tuple[Path, int]]:
    frames: list[tuple[Path, int]] = []
    at: TracebackType | None = error.__traceback__
    while at is not None:
        frames.append((Path(at.tb_frame.f_code.co_filename), at.tb_lineno))
        at = at.tb_next
    return frames


def _is_library(path: Path) -> bool:
    """Whether a file belongs to an installed library or to Python itself, and not to SAGE."""
    if path.is_relative_to(PACKAGE):
        return False
    return any(name in path.parts for name in LIBRARIES) or path.is_relative_to(
        Path(traceback.__file__).parent
    )


def _is_raised_by_a_library(error: BaseException) -> bool:
    """Whether a library such as torch raised the error, in Python code or in C++ below any frame."""
    frames = _frames(error)
    if not frames:
        return False
    path, line = frames[-1]
    is_raised_here = linecache.getline(str(path), line).strip().startswith("raise")
    return _is_library(path) or (isinstance(error, RuntimeError) and not is_raised_here)


def _is_own(error: BaseException) -> bool:
    """Whether the innermost frame outside libraries is in SAGE."""
    paths = [path for path, _ in _frames(error) if not _is_library(path)]
    return bool(paths) and paths[-1].is_relative_to(PACKAGE)


def _place(error: BaseException) -> str:
    """Return file and line of the innermost frame outside libraries."""
    lines = [(path, line) for path, line in _frames(error) if not _is_library(path)]
    if not lines:
        return "a library"
    path, line = lines[-1]
    name = path.relative_to(PACKAGE.parent) if path.is_relative_to(PACKAGE.parent) else path
    return f"{name}, line {line}"
