"""Runs cells on this machine, through submitit's local and debug executors."""

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from submitit import DebugExecutor, LocalExecutor
from submitit.helpers import environment_variables

from sage.config import Config
from sage.jobs.book import Entry
from sage.jobs.cell import STOP, Cell
from sage.nodes.remote import surroundings
from sage.outcome import FAILED, INTERRUPTED

YEAR = 60 * 24 * 365
"""In minutes; submitit's local executor would end a job after two of them."""

Book = Callable[[list[Entry]], None]
Tell = Callable[[Config, Entry], None]


def locally(
    cells: Sequence[Config], folder: Path, *, parallel: int, max_requeues: int, book: Book, tell: Tell
) -> int:
    """Run the cells in processes of their own, so many at once, and `tell` of each when it has ended.

    A Ctrl-C, or SIGTERM, lets those under way save themselves, and starts no more.
    """
    executor = LocalExecutor(folder)
    executor.update_parameters(timeout_min=YEAR, stderr_to_stdout=True)
    waiting = deque(cells)
    running: dict[str, tuple[Config, Entry, Any]] = {}
    failed = False

    def start(cell: Config) -> None:
        with environment_variables(**surroundings()), _on(signal.SIGINT, signal.SIG_IGN):
            job = executor.submit(Cell(cell, max_requeues=max_requeues))
        entry = Entry(cell=cell.folder.name, job=job.job_id, cluster="local", logs=str(folder.resolve()))
        running[job.job_id] = cell, entry, job
        book([entry])

    def reap() -> None:
        nonlocal failed
        for name in [name for name, (_, _, job) in running.items() if job.done()]:
            cell, entry, _ = running.pop(name)
            failed |= not (cell.folder / "result.json").exists()
            tell(cell, entry)
        time.sleep(0.1)

    with _on(signal.SIGTERM, signal.default_int_handler):
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    start(waiting.popleft())
                reap()
                if (folder / STOP).exists():
                    waiting.clear()
        except KeyboardInterrupt:
            for _, entry, _ in running.values():
                stop(entry)
            with _on(signal.SIGINT, signal.SIG_IGN):  # the ranks, which hear it too, end at a second one
                while running:
                    reap()
            return INTERRUPTED
    return FAILED if failed else 0


def one_by_one(cells: Sequence[Config], folder: Path, *, max_requeues: int, book: Book, tell: Tell) -> int:
    """Run the cells in this very process, one after another, and `tell` of each when it has ended."""
    executor = DebugExecutor(folder)
    worst = 0
    for cell in cells:
        job = executor.submit(Cell(cell, max_requeues=max_requeues))
        entry = Entry(
            cell=cell.folder.name, job=str(os.getpid()), cluster="debug", logs=str(folder.resolve())
        )
        book([entry])
        status = job.result().get("status", 0)
        tell(cell, entry)
        if status == INTERRUPTED:
            return INTERRUPTED
        worst = FAILED if status else worst
    return worst


def stop(entry: Entry, *, and_others: bool = False) -> None:
    """Have a job of this machine save itself and end; with the others, none is started after it."""
    (Path(entry.logs) / f"{entry.job}_{STOP}").touch()
    if and_others:
        (Path(entry.logs) / STOP).touch()
    with suppress(ProcessLookupError):
        os.kill(int(entry.job), signal.SIGTERM)


def alive(entry: Entry) -> bool:
    """Whether a job of this machine is still under way; its process id may be another's by now."""
    if entry.host != socket.gethostname():
        return False
    try:
        stat = Path(f"/proc/{entry.job}/stat").read_text()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (FileNotFoundError, ProcessLookupError):
        return False
    state, *fields = stat.rpartition(")")[2].split()
    started = int(boot.split()[1]) + int(fields[18]) / os.sysconf("SC_CLK_TCK")
    booked = datetime.fromisoformat(entry.time).timestamp()
    return state not in "ZX" and started <= booked + 10  # for clocks that are set right


@contextmanager
def _on(number: signal.Signals, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
