"""The state of a sweep's run, from the queue and from the files in its folder."""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from sage import storage
from sage.jobs.local_process import alive, was_cancelled
from sage.jobs.scheduler import Job
from sage.jobs.submissions import Entry
from sage.output.text import clean_text
from sage.output.units import number, spaced
from sage.storage import CONFIG, FAILURE, MANIFEST, RESULT, Kind, Unreadable

TAIL = 2**16
"""Bytes read from the end of a file; the record of a long run is never read in full."""

RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED")
"""SLURM's states of a job that has started; in all other active states it is pending."""

NOISE = ("srun: ", "slurmstepd: ")
"""Prefixes of the lines that SLURM adds to a log when a task fails."""

NOTHING = "left no result, error or log"
"""The reason shown for a failed run without any file that has one."""

Word = Literal["missing", "pending", "running", "finished", "failed", "damaged", "unknown"]
"""The states of a run. `missing`: never submitted or run; `damaged`: its result cannot be read; `unknown`:
SLURM does not answer."""


@dataclass(frozen=True, kw_only=True)
class State:
    """A run's state, as shown in one line of the table."""

    word: Word
    job: str = ""
    step: str = ""
    metric: str = ""
    """The latest headline metric; of a finished run, the final one."""
    why: str = ""
    """Why the run is pending, failed, damaged or unknown."""
    requeued: int = 0


class States:
    """Reads the states of runs in a folder. A finished run is not read again."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._finished: dict[str, State] = {}

    def of(self, name: str, entry: Entry | None, queue: Mapping[str, Job] | None) -> State:
        """The state of a run.

        Args:
            name: the run's name.
            entry: its newest submission; None: never submitted.
            queue: SLURM's queue; None: SLURM did not answer.
        """
        if name in self._finished:
            return self._finished[name]
        folder = self._runs / name
        queued = (queue or {}).get(entry.job) if entry is not None and entry.cluster == "slurm" else None
        job = entry.job if entry is not None else ""
        requeued = queued.restarts if queued else 0
        if queued is not None and queued.active and queued.state not in RUNNING:
            return State(word="pending", job=job, why=queued.reason, requeued=requeued)
        if is_active(entry, queue):
            step, metric, fault = _progress(folder)
            return State(word="running", job=job, step=step, metric=metric, why=fault, requeued=requeued)
        try:
            final = result(folder)
        except Unreadable as damage:
            return State(word="damaged", job=job, why=clean_text(str(damage)), requeued=requeued)
        requeued = requeued or _restarts(folder)
        if final is not None:
            step, metric = final
            self._finished[name] = State(
                word="finished", job=job, step=step, metric=metric, requeued=requeued
            )
            return self._finished[name]
        step, metric, fault = _progress(folder)
        if entry is None:
            return State(word="missing", step=step, metric=metric, why=fault)
        if entry.cluster == "slurm" and queue is None:
            return State(word="unknown", job=job, step=step, metric=metric, why="SLURM does not answer")
        cancelled = (queued is not None and queued.state == "CANCELLED") or was_cancelled(entry)
        why = "cancelled" if cancelled or _vanished(entry, queue) else error(folder, entry)
        return State(word="failed", job=job, step=step, metric=metric, why=why, requeued=requeued)


def is_active(entry: Entry | None, queue: Mapping[str, Job] | None) -> bool:
    """Whether the job is running or pending, as far as this machine can tell."""
    if entry is None:
        return False
    if entry.cluster == "slurm":
        return queue is not None and entry.job in queue and queue[entry.job].active
    return alive(entry)


def is_finished(folder: Path) -> bool:
    """Whether a run has a result.

    Raises:
        Unreadable: the result is damaged.
    """
    return result(folder) is not None


def result(folder: Path) -> tuple[str, str] | None:
    """The number of steps and the headline metric of a finished run; None for an unfinished run.

    Raises:
        Unreadable: the result is damaged.
    """
    path = folder / "result.json"
    try:
        found = storage.read_json(path, RESULT)
    except FileNotFoundError:
        return None
    value = found["final"].get(found["metric"])
    return str(found["steps"]), f"{spaced(found['metric'])} {_figure(value)}"


def progress(folder: Path) -> tuple[str, str]:
    """An unfinished run's number of steps, and the headline metric of its latest evaluation.

    Damaged lines of the record are skipped.

    Raises:
        Unreadable: the record cannot be read.
    """
    step, metric = "", ""
    for line in reversed(tail(folder / "metrics.jsonl")):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # the first or last line may be cut; others may be damaged
            continue
        if not isinstance(record, dict):
            continue
        count, epoch, metrics = record.get("step"), record.get("epoch"), record.get("metrics")
        if record.get("kind") == "step" and not step and _is_number(count) and _is_number(epoch):
            step = str(count + 1) + _of_total(folder, epoch)
        if record.get("kind") == "epoch" and not metric and isinstance(metrics, dict) and metrics:
            headline, value = next(iter(metrics.items()))  # every task lists its headline metric first
            metric = f"{spaced(headline)} {_figure(value)}"
        if step and metric:
            break
    return step, metric


def error(folder: Path, entry: Entry) -> str:
    """Why a run has failed, in one line."""
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
    """The last lines of a file; the first of them may be cut. An empty list if there is no file.

    Raises:
        Unreadable: the file cannot be read.
    """
    try:
        # Non-blocking: opening a FIFO without a writer would hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unreadable(path, "is not a regular file", "remove it")
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read().decode(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as fault:
        raise Unreadable(path, f"cannot be read: {fault.strerror or fault}") from fault


def _progress(folder: Path) -> tuple[str, str, str]:
    """The result of `progress`, and the error that kept it from being read, or ""."""
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
    """Whether the job is an array task that was cancelled before it started: SLURM keeps no record of it.

    That is so if the queue has other tasks of the array, and this one has no log.
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
    """How often SLURM had restarted the job at its latest start."""
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
