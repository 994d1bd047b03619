"""Execution of a sweep's runs on this machine, through submitit's local and debug executors."""

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
from sage.jobs.environment import for_python, for_runs, only, umask
from sage.jobs.run_job import STOP, RunJob
from sage.jobs.submissions import Cluster, Entry
from sage.storage.lock import started

YEAR = 60 * 24 * 365
"""A year in minutes: submitit's local executor ends a job after twice this time."""

BOOT = Path("/proc/sys/kernel/random/boot_id")

Record = Callable[[list[Entry]], None]
Report = Callable[[Config, Entry, str], None]
"""Called when a run has ended, with the error that kept it from starting, or ""."""
Claim = Callable[[Config], AbstractContextManager[bool]]
"""Locks the runs folder for other submissions; yields whether the run still has to be started."""


class Local(LocalExecutor):
    """submitit's local executor with jobs that check their pickle before loading it."""

    mask = 0o022
    """The umask of the jobs."""

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m sage.jobs.entry {shlex.quote(str(self.folder))}"

    def _submit_command(self, command: str) -> LocalJob[Any]:
        with umask(self.mask):
            return super()._submit_command(command)


def run_in_processes(
    configs: Sequence[Config],
    folder: Path,
    *,
    parallel: int,
    max_requeues: int,
    record: Record,
    report: Report,
    claim: Claim,
) -> int:
    """Run each configuration in its own process, `parallel` at a time; call `report` when one has ended.

    Ctrl-C and SIGTERM make active runs write a checkpoint and stop, and no more are started. SIGINT is
    handled even where it was ignored when this process started, as for `sage submit &` in a script.
    """
    executor = Local(folder)
    executor.update_parameters(timeout_min=YEAR, stderr_to_stdout=True)
    waiting = deque(configs)
    running: dict[str, tuple[Config, Entry, Any]] = {}
    failed = False

    def start(config: Config) -> None:
        with claim(config) as mine:
            if not mine:
                return
            with (
                only({**for_python(), **for_runs()}),
                _on(signal.SIGINT, signal.SIG_IGN),
                umask() as executor.mask,
            ):
                job = executor.submit(RunJob(config, max_requeues=max_requeues))
            entry = _entry(config, job.job_id, "local", folder)
            running[job.job_id] = config, entry, job
            record([entry])

    def reap() -> None:
        nonlocal failed
        for name in [name for name, (_, _, job) in running.items() if job.done()]:
            config, entry, _ = running.pop(name)
            failed |= not (config.folder / "result.json").exists()
            report(config, entry, "")
        time.sleep(0.1)

    def end() -> None:
        """Stop the active runs with a checkpoint, and wait for them."""
        for _, entry, _ in running.values():
            stop(entry)
        with _on(
            signal.SIGINT, signal.SIG_IGN
        ):  # Ctrl-C reaches the ranks too; a second one ends them at once
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


def run_in_this_process(
    configs: Sequence[Config],
    folder: Path,
    *,
    max_requeues: int,
    record: Record,
    report: Report,
    claim: Claim,
) -> int:
    """Run each configuration in this process, one after another; call `report` when one has ended."""
    worst = 0
    for config in configs:
        with claim(config) as mine:
            if not mine:
                continue
            entry = _entry(config, str(os.getpid()), "debug", folder)
            record([entry])
        run: Any = RunJob(config, max_requeues=max_requeues)
        with only(for_runs()):
            status = DebugExecutor(folder).submit(run).result().get("status", 0)
        report(config, entry, run.error)
        if status == INTERRUPTED:
            return INTERRUPTED
        worst = FAILED if status else worst
    return worst


def stop(entry: Entry, *, and_others: bool = False) -> None:
    """Make a job on this machine write a checkpoint and end; `and_others`: its submission starts no more."""
    mark_cancelled(entry)
    if and_others:
        with suppress(OSError):
            (Path(entry.logs) / STOP).touch(mode=0o600)
    with suppress(ProcessLookupError):
        os.kill(int(entry.job), signal.SIGTERM)


def mark_cancelled(entry: Entry) -> None:
    """Record that a job was cancelled: a SLURM job that had not started leaves no trace in the queue."""
    with suppress(OSError):
        _mark(entry).touch(mode=0o600)


def was_cancelled(entry: Entry) -> bool:
    """Whether `sage cancel` has cancelled the job."""
    try:
        return _mark(entry).exists()
    except OSError:
        return False


def identity(process: int) -> str:
    """Identifies a process independently of the clock: boot id, and clock ticks from boot to its start."""
    try:
        ticks = started(process)
        return ticks and f"{BOOT.read_text().strip()}/{ticks}"
    except OSError:
        return ""


def alive(entry: Entry) -> bool:
    """Whether a job on this machine is still running. Its process id may belong to another process by now."""
    if entry.host != socket.gethostname() or not entry.job.isdecimal():
        return False
    found = identity(int(entry.job))
    if entry.started or not found:
        return bool(found) and found == entry.started
    # An entry by a version that did not record the process's identity: compare by the clock.
    try:
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        began = int(boot.split()[1]) + int(found.partition("/")[2]) / os.sysconf("SC_CLK_TCK")
        return began <= datetime.fromisoformat(entry.time).timestamp() + 10
    except (OSError, ValueError, StopIteration):
        return False


def _entry(config: Config, job: str, cluster: Cluster, folder: Path) -> Entry:
    return Entry(
        run=config.folder.name,
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
