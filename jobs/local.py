"""Execution of a sweep's runs on this machine, through submitit's local and debug executors."""

import os
import shlex
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from submitit import DebugExecutor, LocalExecutor
from submitit.local.local import LocalJob

from sage.config import Config
from sage.exit_status import FAILED, INTERRUPTED
from sage.jobs.environment import for_python, for_runs, only, umask
from sage.jobs.local_process import STOP, identity, stop
from sage.jobs.run_job import RunJob
from sage.jobs.submissions import Cluster, Entry

YEAR = 60 * 24 * 365
"""A year in minutes: submitit's local executor ends a job after twice this time."""

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


def _entry(config: Config, job: str, cluster: Cluster, folder: Path) -> Entry:
    return Entry(
        run=config.folder.name,
        job=job,
        cluster=cluster,
        logs=str(folder.resolve()),
        started=identity(int(job)),
    )


@contextmanager
def _on(number: signal.Signals, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
