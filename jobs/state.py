"""What has become of a cell, told from the queue and from the files that it leaves."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sage.jobs.book import Entry
from sage.jobs.here import alive
from sage.jobs.scheduler import Job
from sage.tell.units import number, spaced

TAIL = 2**16
"""Bytes at the end of a file that are read; a record of a long run is never read whole."""

RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED")
"""SLURM's states of a job that has begun; in the others it waits."""

NOISE = ("srun: ", "slurmstepd: ")
"""What SLURM adds to a log when a task fails."""

Word = Literal["missing", "pending", "running", "done", "failed", "unknown"]


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
            step, metric = progress(folder)
            return State(word="running", job=name, step=step, metric=metric, requeued=requeued)
        if (final := result(folder)) is not None:
            step, metric = final
            requeued = requeued or _restarts(folder)
            self._done[cell] = State(word="done", job=name, step=step, metric=metric, requeued=requeued)
            return self._done[cell]
        step, metric = progress(folder)
        if entry is None:
            return State(word="missing", step=step, metric=metric)
        if entry.cluster == "slurm" and queue is None:
            return State(word="unknown", job=name, step=step, metric=metric, why="SLURM does not answer")
        cancelled = seen is not None and seen.state == "CANCELLED"
        why = "cancelled" if cancelled else error(folder, entry)
        requeued = requeued or _restarts(folder)
        return State(word="failed", job=name, step=step, metric=metric, why=why, requeued=requeued)


def is_active(entry: Entry | None, queue: Mapping[str, Job] | None) -> bool:
    """Whether the job runs or is still to run, as far as can be seen."""
    if entry is None:
        return False
    if entry.cluster == "slurm":
        return queue is not None and entry.job in queue and queue[entry.job].active
    return alive(entry)


def result(folder: Path) -> tuple[str, str] | None:
    """How many steps a finished run took, and its headline metric; None of one that is not finished."""
    if (found := read_json(folder / "result.json")) is None:
        return None
    return str(found["steps"]), f"{spaced(found['metric'])} {number(found['final'][found['metric']])}"


def progress(folder: Path) -> tuple[str, str]:
    """How far an unfinished run has come, and the headline metric of its latest evaluation."""
    step, metric = "", ""
    for line in reversed(tail(folder / "metrics.jsonl")):
        try:
            record = json.loads(line)
        except ValueError:  # the first or the last line, torn
            continue
        if record["kind"] == "step" and not step:
            step = str(record["step"] + 1) + _of_total(folder, record["epoch"])
        if record["kind"] == "epoch":
            headline, value = next(
                iter(record["metrics"].items())
            )  # every task names its headline metric first
            metric = f"{spaced(headline)} {number(value)}"
        if step and metric:
            break
    return step, metric


def error(folder: Path, entry: Entry) -> str:
    """Why a cell has failed, in one line."""
    if (failure := read_json(folder / "failure.json")) is not None:
        return " ".join(str(failure["error"]).split())
    lines = [line for line in map(str.strip, tail(entry.log(0))) if line]
    return next((line for line in reversed(lines) if not line.startswith(NOISE)), "it left no word")


def tail(path: Path) -> list[str]:
    """The last lines of a file, the first of them maybe cut; none where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a file that may not be there."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content


def _of_total(folder: Path, epoch: int) -> str:
    config = read_json(folder / "config.json") or {}
    if config.get("steps"):
        return f" of {config['steps']}"
    return f", epoch {epoch + 1} of {config['epochs']:g}" if "epochs" in config else ""


def _restarts(folder: Path) -> int:
    """How often SLURM had restarted the job when it began for the last time."""
    environment = (read_json(folder / "manifest.json") or {}).get("environment", {})
    return int(environment.get("SLURM_RESTART_COUNT", 0))
