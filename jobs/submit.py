"""`sage submit`: submit the runs of a sweep that are neither finished nor active."""

import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path

from sage.config import Config
from sage.jobs import arrays, intents, local, scheduler, submissions
from sage.jobs.state import error, is_active, is_finished, result
from sage.jobs.status import watch
from sage.jobs.status_view import queue_of, unfinished
from sage.jobs.submissions import Cluster, Entry
from sage.jobs.sweep import Sweep, labels, note, read
from sage.storage import Unreadable
from sage.storage.remote.store import check as check_url
from sage.storage.remote.url import mark

DEFAULT_ARRAY = 1001
"""SLURM's default MaxArraySize, for a dry run on a machine without SLURM."""


def main(
    path: Path,
    *,
    cluster: Cluster | None = None,
    runs: Path | None = None,
    parallel: int | None = None,
    max_requeues: int | None = None,
    max_cells: int | None = None,
    dry_run: bool = False,
    watching: bool = False,
    pilot: bool = False,
) -> int:
    """Submit the runs of a sweep that are neither finished nor active.

    Args:
        path: a TOML file with a run's keys, whose lists expand into runs.
        cluster: where to run them; None: SLURM if there is sbatch.
        runs: the runs folder; this and the next three override the file's keys.
        parallel: maximum number of runs at a time.
        max_requeues: how often a failed run is started again.
        max_cells: maximum number of runs in the sweep.
        dry_run: only print the runs and the batch scripts.
        watching: show the runs' states until all have ended.
        pilot: submit the pilot runs instead of those of the comparison.

    Raises:
        ValueError: the sweep or an argument is invalid.
    """
    cluster = cluster or _default_cluster(dry_run)
    sweep = read(
        path,
        runs,
        parallel=parallel,
        max_requeues=max_requeues,
        max_cells=max_cells,
        pilot=pilot,
    )
    _check_path(sweep, cluster)
    check_url(sweep.runs)
    try:
        if dry_run:
            status = _submit(sweep, cluster, dry_run=True)
        else:
            submissions.prepare(sweep.runs)
            mark(sweep.runs)
            with submissions.lock_sweep(sweep.runs, sweep.name):
                status = _submit(sweep, cluster, dry_run=False)
        if watching and not dry_run:
            return watch(labels(sweep), sweep.runs)
    except scheduler.Unanswered as error:
        print(f"sage submit: {error}", file=sys.stderr)
        return 1
    return status


def _submit(sweep: Sweep, cluster: Cluster, *, dry_run: bool) -> int:
    folder = (
        submissions.folder(sweep.runs) / f"{sweep.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    )
    record = partial(submissions.write, sweep.runs)
    # Other submissions to this runs folder wait, from the check of existing runs to the last entry.
    with nullcontext() if dry_run else submissions.lock_runs(sweep.runs):
        if cluster == "slurm" and not dry_run:
            intents.settle(submissions.folder(sweep.runs), submissions.read(sweep.runs).values(), echo)
        todo, finished = [], 0
        for config in sweep.configs:
            try:
                if is_finished(config.folder):
                    finished += 1
                else:
                    todo.append(config)
            except Unreadable as fault:
                print(f"sage submit: {fault}; the run is skipped until then", file=sys.stderr, flush=True)
        active = _active(sweep, sweep.configs)
        waiting = [config for config in todo if config.folder.name not in active]
        print(
            f"{len(sweep.configs)} runs: {finished} finished, {len(active)} active, "
            f"{len(waiting)} to {'run' if cluster != 'slurm' else 'submit'}",
            flush=True,
        )
        if dry_run:
            _print_plan(sweep, waiting, cluster, folder)
            return 0
        note(sweep)
        if not waiting:
            return 0
        if cluster == "slurm":
            planned = arrays.plan(sweep, waiting, folder, scheduler.max_array_size())
            folder.mkdir(mode=0o700)
            arrays.submit(planned, active.values(), record, echo)
            return 0
    folder.mkdir(mode=0o700)
    run = (
        local.run_in_this_process
        if cluster == "debug"
        else partial(local.run_in_processes, parallel=sweep.parallel or 1)
    )
    return run(
        waiting,
        folder,
        max_requeues=sweep.max_requeues,
        record=record,
        report=_report,
        claim=partial(_claim, sweep),
    )


def _active(sweep: Sweep, configs: Iterable[Config]) -> dict[str, str]:
    """The job ids of the running or pending runs among these, by run name."""
    entries, faults = submissions.read_with_faults(sweep.runs)
    for fault in faults:
        print(f"sage submit: {fault}", file=sys.stderr, flush=True)
    wanted = unfinished(entries, [config.folder.name for config in configs], sweep.runs)
    # A runs folder may have been copied to a machine without SLURM.
    queue = queue_of(wanted) if shutil.which("squeue") else {}
    return {entry.run: entry.job for entry in wanted if is_active(entry, queue)}


@contextmanager
def _claim(sweep: Sweep, config: Config) -> Iterator[bool]:
    """Lock the runs folder for other submissions; yields whether the run still has to be started."""
    with submissions.lock_runs(sweep.runs):
        mine = not is_finished(config.folder) and not _active(sweep, [config])
        if not mine:
            echo(f"{config.folder.name}: skipped, another submission has meanwhile started or finished it")
        yield mine


def _check_path(sweep: Sweep, cluster: Cluster) -> None:
    """Refuse a path of logs in which SLURM or submitit would replace a part."""
    path = str(sweep.runs.resolve() / sweep.name)
    wrong = [symbol for symbol in ("%", "\\") if symbol in path] if cluster == "slurm" else []
    wrong += [symbol for symbol in ("%j", "%t", "%A", "%a") if cluster != "slurm" and symbol in path]
    if wrong or not path.isprintable():
        what = f"contains {wrong[0]}" if wrong else "contains a control character"
        raise ValueError(
            f"the jobs' logs would be in {path!r}, which {what}; SLURM does not take that literally in a "
            "log's path: rename the sweep, or choose another --runs"
        )


def _print_plan(sweep: Sweep, configs: list[Config], cluster: Cluster, folder: Path) -> None:
    """Print the runs, and under SLURM the batch scripts, of a dry run."""
    settings = labels(sweep)
    for config in configs:
        print(f"{config.folder.name}  {settings[config.folder.name]}".rstrip())
    if cluster == "slurm":
        try:
            most = scheduler.max_array_size()
        except scheduler.Unanswered:
            most = DEFAULT_ARRAY
        for array in arrays.plan(sweep, configs, folder, most):
            order = ", after the previous array" if sweep.parallel and array.number else ""
            print(f"\n# sbatch, {len(array.configs)} runs, {array.resources} each{order}")
            print(arrays.Executor(array).script())


def echo(text: str) -> None:
    """Print a line and flush it."""
    print(text, flush=True)


def _report(config: Config, entry: Entry, reason: str) -> None:
    """Print the outcome of a run on this machine."""
    try:
        final = result(config.folder)
        outcome = f"finished, {final[1]}" if final else reason or error(config.folder, entry)
    except ValueError as fault:
        outcome = str(fault)
    echo(f"{config.folder.name}: {outcome}")


def _default_cluster(dry_run: bool) -> Cluster:
    if shutil.which("sbatch") or dry_run:
        return "slurm"
    raise ValueError(
        "there is no sbatch on this machine; call `sage submit` on a machine with SLURM, or give --cluster "
        "local to run here with one process per run, or --cluster debug to run everything in this process"
    )
