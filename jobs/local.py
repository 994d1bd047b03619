"""Runs cells on this machine, through submitit's local and debug executors."""

import os
import shlex
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from submitit import DebugExecutor, LocalExecutor
from submitit.local.local import LocalJob

from sage.config import Config
from sage.exit_status import FAILED, INTERRUPTED
from sage.jobs.environment import for_cells, for_python, only, umask
from sage.jobs.run_job import STOP, Cell
from sage.jobs.submissions import Cluster, Entry
from sage.storage.lock import started

YEAR = 60 * 24 * 365
"""In minutes; submitit's local executor would end a job after two of them."""

BOOT = Path("/proc/sys/kernel/random/boot_id")

Book = Callable[[list[Entry]], None]
Tell = Callable[[Config, Entry, str], None]
"""What is called when a cell has ended: with its reason where the cell itself gave one."""
Turn = Callable[[Config], AbstractContextManager[bool]]
"""Whether a cell is still to be run, seen while nobody else can start it."""


class Local(LocalExecutor):
    """submitit's local executor, whose jobs check what they load."""

    mask = 0o022
    """The umask that a job is to have."""

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m sage.jobs.entry {shlex.quote(str(self.folder))}"

    def _submit_command(self, command: str) -> LocalJob[Any]:
        with umask(self.mask):
            return super()._submit_command(command)


def locally(
    cells: Sequence[Config],
    folder: Path,
    *,
    parallel: int,
    max_requeues: int,
    book: Book,
    tell: Tell,
    turn: Turn,
) -> int:
    """Run the cells in processes of their own, so many at once, and `tell` of each when it has ended.

    A Ctrl-C, or SIGTERM, lets those under way save themselves, and starts no more. SIGINT is heard also where
    it was ignored when this process started, as it is for `sage submit &` in a script.
    """
    executor = Local(folder)
    executor.update_parameters(timeout_min=YEAR, stderr_to_stdout=True)
    waiting = deque(cells)
    running: dict[str, tuple[Config, Entry, Any]] = {}
    failed = False

    def start(cell: Config) -> None:
        with turn(cell) as mine:
            if not mine:
                return
            with (
                only({**for_python(), **for_cells()}),
                _on(signal.SIGINT, signal.SIG_IGN),
                umask() as executor.mask,
            ):
                job = executor.submit(Cell(cell, max_requeues=max_requeues))
            entry = _entry(cell, job.job_id, "local", folder)
            running[job.job_id] = cell, entry, job
            book([entry])

    def reap() -> None:
        nonlocal failed
        for name in [name for name, (_, _, job) in running.items() if job.done()]:
            cell, entry, _ = running.pop(name)
            failed |= not (cell.folder / "result.json").exists()
            tell(cell, entry, "")
        time.sleep(0.1)

    def end() -> None:
        """Have what runs save itself, and wait for it."""
        for _, entry, _ in running.values():
            stop(entry)
        with _on(signal.SIGINT, signal.SIG_IGN):  # the ranks, which hear it too, end at a second one
            while running:
                reap()

    with _on(signal.SIGTERM, signal.default_int_handler), _on(signal.SIGINT, signal.default_int_handler):
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    start(waiting.popleft())
                reap()
                if (folder / STOP).exists():
                    waiting.clear()
        except KeyboardInterrupt:
            end()
            return INTERRUPTED
        except BaseException:
            end()
            raise
    return FAILED if failed else 0


def one_by_one(
    cells: Sequence[Config], folder: Path, *, max_requeues: int, book: Book, tell: Tell, turn: Turn
) -> int:
    """Run the cells in this very process, one after another, and `tell` of each when it has ended."""
    worst = 0
    for cell in cells:
        with turn(cell) as mine:
            if not mine:
                continue
            entry = _entry(cell, str(os.getpid()), "debug", folder)
            book([entry])
        run: Any = Cell(cell, max_requeues=max_requeues)
        with only(for_cells()):
            status = DebugExecutor(folder).submit(run).result().get("status", 0)
        tell(cell, entry, run.error)
        if status == INTERRUPTED:
            return INTERRUPTED
        worst = FAILED if status else worst
    return worst


def stop(entry: Entry, *, and_others: bool = False) -> None:
    """Have a job of this machine save itself and end; with the others, none is started after it."""
    mark_cancelled(entry)
    if and_others:
        with suppress(OSError):
            (Path(entry.logs) / STOP).touch(mode=0o600)
    with suppress(ProcessLookupError):
        os.kill(int(entry.job), signal.SIGTERM)


def mark_cancelled(entry: Entry) -> None:
    """Note that a job was cancelled: one of SLURM's that had not begun leaves no trace in the queue."""
    with suppress(OSError):
        _mark(entry).touch(mode=0o600)


def was_cancelled(entry: Entry) -> bool:
    """Whether `sage cancel` has ended the job."""
    try:
        return _mark(entry).exists()
    except OSError:
        return False


def identity(process: int) -> str:
    """Which process has this id, whatever the clock says: the boot, and clock ticks from it to its start."""
    try:
        ticks = started(process)
        return ticks and f"{BOOT.read_text().strip()}/{ticks}"
    except OSError:
        return ""


def alive(entry: Entry) -> bool:
    """Whether a job of this machine is still under way; its process id may be another's by now."""
    if entry.host != socket.gethostname() or not entry.job.isdecimal():
        return False
    found = identity(int(entry.job))
    if entry.started or not found:
        return bool(found) and found == entry.started
    # Booked by a version that did not note the process: by the clock.
    try:
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        began = int(boot.split()[1]) + int(found.partition("/")[2]) / os.sysconf("SC_CLK_TCK")
        return began <= datetime.fromisoformat(entry.time).timestamp() + 10
    except (OSError, ValueError, StopIteration):
        return False


def _entry(cell: Config, job: str, cluster: Cluster, folder: Path) -> Entry:
    return Entry(
        cell=cell.folder.name,
        job=job,
        cluster=cluster,
        logs=str(folder.resolve()),
        started=identity(int(job)),
    )


def _mark(entry: Entry) -> Path:
    return Path(entry.logs) / f"{entry.job}_{STOP}"


@contextmanager
def _on(number: signal.Signals, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
