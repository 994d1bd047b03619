"""What has become of a cell, told from the queue and from the files that it leaves."""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from sage import storage
from sage.jobs.local import alive, was_cancelled
from sage.jobs.scheduler import Job
from sage.jobs.submissions import Entry
from sage.output.text import clean_text
from sage.output.units import number, spaced
from sage.storage import CONFIG, FAILURE, MANIFEST, RESULT, Kind, Unreadable

TAIL = 2**16
"""Bytes at the end of a file that are read; a record of a long run is never read whole."""

RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED")
"""SLURM's states of a job that has begun; in the others it waits."""

NOISE = ("srun: ", "slurmstepd: ")
"""What SLURM adds to a log when a task fails."""

NOTHING = "it left no word"
"""Why a cell has failed of which no file tells."""

Word = Literal["missing", "pending", "running", "done", "failed", "damaged", "unknown"]
"""What a cell can be; `damaged`: its result cannot be read."""


@dataclass(frozen=True, kw_only=True)
class State:
    """A cell's line in the table."""

    word: Word
    job: str = ""
    step: str = ""
    metric: str = ""
    """The latest headline metric; of what is done, the final one."""
    why: str = ""
    """Why it is pending, or failed, or unknown."""
    requeued: int = 0


class States:
    """Looks cells up in a folder of runs, and no oftener than needed: what is done stays done."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._done: dict[str, State] = {}

    def of(self, cell: str, entry: Entry | None, queue: Mapping[str, Job] | None) -> State:
        """The cell's state, given its newest submission and the queue; None: SLURM did not answer."""
        if cell in self._done:
            return self._done[cell]
        folder = self._runs / cell
        seen = (queue or {}).get(entry.job) if entry is not None and entry.cluster == "slurm" else None
        name = entry.job if entry is not None else ""
        requeued = seen.restarts if seen else 0
        if seen is not None and seen.active and seen.state not in RUNNING:
            return State(word="pending", job=name, why=seen.reason, requeued=requeued)
        if is_active(entry, queue):
            step, metric, fault = _progress(folder)
            return State(word="running", job=name, step=step, metric=metric, why=fault, requeued=requeued)
        try:
            final = result(folder)
        except Unreadable as damage:
            return State(word="damaged", job=name, why=clean_text(str(damage)), requeued=requeued)
        requeued = requeued or _restarts(folder)
        if final is not None:
            step, metric = final
            self._done[cell] = State(word="done", job=name, step=step, metric=metric, requeued=requeued)
            return self._done[cell]
        step, metric, fault = _progress(folder)
        if entry is None:
            return State(word="missing", step=step, metric=metric, why=fault)
        if entry.cluster == "slurm" and queue is None:
            return State(word="unknown", job=name, step=step, metric=metric, why="SLURM does not answer")
        cancelled = (seen is not None and seen.state == "CANCELLED") or was_cancelled(entry)
        why = "cancelled" if cancelled or _vanished(entry, queue) else error(folder, entry)
        return State(word="failed", job=name, step=step, metric=metric, why=why, requeued=requeued)


def is_active(entry: Entry | None, queue: Mapping[str, Job] | None) -> bool:
    """Whether the job runs or is still to run, as far as can be seen."""
    if entry is None:
        return False
    if entry.cluster == "slurm":
        return queue is not None and entry.job in queue and queue[entry.job].active
    return alive(entry)


def is_finished(folder: Path) -> bool:
    """Whether a run has a result.

    Raises:
        Unreadable: where the result cannot be used.
    """
    return result(folder) is not None


def result(folder: Path) -> tuple[str, str] | None:
    """How many steps a finished run took, and its headline metric; None of one that is not finished.

    Raises:
        Unreadable: where the result cannot be used.
    """
    path = folder / "result.json"
    try:
        found = storage.read_json(path, RESULT)
    except FileNotFoundError:
        return None
    value = found["final"].get(found["metric"])
    return str(found["steps"]), f"{spaced(found['metric'])} {_figure(value)}"


def progress(folder: Path) -> tuple[str, str]:
    """How far an unfinished run has come, and the headline metric of its latest evaluation.

    Raises:
        Unreadable: where its record cannot be read. Lines that cannot be used are left out.
    """
    step, metric = "", ""
    for line in reversed(tail(folder / "metrics.jsonl")):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # the first or the last line, torn; or damaged
            continue
        if not isinstance(record, dict):
            continue
        count, epoch, metrics = record.get("step"), record.get("epoch"), record.get("metrics")
        if record.get("kind") == "step" and not step and _is_number(count) and _is_number(epoch):
            step = str(count + 1) + _of_total(folder, epoch)
        if record.get("kind") == "epoch" and not metric and isinstance(metrics, dict) and metrics:
            headline, value = next(iter(metrics.items()))  # every task names its headline metric first
            metric = f"{spaced(headline)} {_figure(value)}"
        if step and metric:
            break
    return step, metric


def error(folder: Path, entry: Entry) -> str:
    """Why a cell has failed, in one line."""
    try:
        failure = _read(folder / "failure.json", FAILURE)
        if failure is not None:
            return " ".join(clean_text(failure["error"]).split())
        lines = tail(entry.log(0))
    except Unreadable as fault:
        return clean_text(str(fault))
    lines = [line for line in map(str.strip, map(clean_text, lines)) if line]
    return next((line for line in reversed(lines) if not line.startswith(NOISE)), NOTHING)


def tail(path: Path) -> list[str]:
    """The last lines of a file, the first of them maybe cut; none where there is no file.

    Raises:
        Unreadable: where the file system refuses.
    """
    try:
        # Not blocking, so that a FIFO without a writer does not hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unreadable(path, "is no regular file", "remove it")
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read().decode(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as fault:
        raise Unreadable(path, f"cannot be read: {fault.strerror or fault}") from fault


def _progress(folder: Path) -> tuple[str, str, str]:
    """The same as `progress`, and what kept from reading it."""
    try:
        return *progress(folder), ""
    except Unreadable as fault:
        return "", "", clean_text(str(fault))


def _read(path: Path, kind: Kind) -> dict[str, Any] | None:
    try:
        return storage.read_json(path, kind)
    except FileNotFoundError:
        return None


def _vanished(entry: Entry, queue: Mapping[str, Job] | None) -> bool:
    """Whether the job is a task of an array that was cancelled before it began: SLURM keeps no record of it.

    The other tasks of the array are on record, and this one has left no log.
    """
    array, _, task = entry.job.partition("_")
    if not task or queue is None or entry.job in queue or entry.log(0).exists():
        return False
    return any(name.startswith(f"{array}_") for name in queue)


def _of_total(folder: Path, epoch: float) -> str:
    try:
        config = _read(folder / "config.json", CONFIG) or {}
    except Unreadable:
        return ""
    if _is_number(config.get("steps")) and config["steps"]:
        return f" of {config['steps']}"
    return f", epoch {epoch + 1} of {config['epochs']:g}" if _is_number(config.get("epochs")) else ""


def _restarts(folder: Path) -> int:
    """How often SLURM had restarted the job when it began for the last time."""
    try:
        environment = (_read(folder / "manifest.json", MANIFEST) or {}).get("environment")
    except Unreadable:
        return 0
    count = environment.get("SLURM_RESTART_COUNT") if isinstance(environment, dict) else None
    return int(count) if isinstance(count, str) and count.isascii() and count.isdecimal() else 0


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(value: object) -> str:
    return number(value) if _is_number(value) else "–"
