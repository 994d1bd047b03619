"""`sage submit`: have those cells of a suite run that are neither finished nor under way."""

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
from sage.jobs.status import queue_of, unfinished, watch
from sage.jobs.submissions import Cluster, Entry
from sage.jobs.sweep import Suite, labels, note, read
from sage.storage import Unreadable

DEFAULT_ARRAY = 1001
"""SLURM's own MaxArraySize, for a dry run where there is no SLURM."""


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
) -> int:
    """Run those cells of a suite that are neither finished nor under way.

    Args:
        path: a TOML file of a run's keys, in which lists make cells.
        cluster: where to run them; None: SLURM, where there is sbatch.
        runs: where the run folders are; this and the next three go before what the file says.
        dry_run: print the cells and batch scripts, and do nothing.
        watching: show what becomes of them, until all have ended.

    Raises:
        ValueError: where the file or an argument is wrong.
    """
    cluster = cluster or _usual(dry_run)
    suite = read(
        path,
        runs,
        parallel=parallel,
        max_requeues=max_requeues,
        max_cells=max_cells,
    )
    _check_path(suite, cluster)
    try:
        if dry_run:
            status = _submit(suite, cluster, dry_run=True)
        else:
            submissions.prepare(suite.runs)
            with submissions.claimed(suite.runs, suite.name):
                status = _submit(suite, cluster, dry_run=False)
        if watching and not dry_run:
            return watch(labels(suite), suite.runs)
    except scheduler.Unanswered as error:
        print(f"sage submit: {error}", file=sys.stderr)
        return 1
    return status


def _submit(suite: Suite, cluster: Cluster, *, dry_run: bool) -> int:
    folder = (
        submissions.folder(suite.runs) / f"{suite.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    )
    enter = partial(submissions.write, suite.runs)
    # Others that submit the same cells are kept off from the look at what there is to the last entry.
    with nullcontext() if dry_run else submissions.held(suite.runs):
        if cluster == "slurm" and not dry_run:
            intents.settle(submissions.folder(suite.runs), submissions.read(suite.runs).values(), say)
        todo, finished = [], 0
        for cell in suite.cells:
            try:
                if is_finished(cell.folder):
                    finished += 1
                else:
                    todo.append(cell)
            except Unreadable as fault:
                print(f"sage submit: {fault}; it is left out until then", file=sys.stderr, flush=True)
        active = _active(suite, suite.cells)
        waiting = [cell for cell in todo if cell.folder.name not in active]
        print(
            f"{len(suite.cells)} cells: {finished} finished, {len(active)} active, "
            f"{len(waiting)} to {'run' if cluster != 'slurm' else 'submit'}",
            flush=True,
        )
        if dry_run:
            _rehearse(suite, waiting, cluster, folder)
            return 0
        note(suite)
        if not waiting:
            return 0
        if cluster == "slurm":
            planned = arrays.plan(suite, waiting, folder, scheduler.max_array_size())
            folder.mkdir(mode=0o700)
            arrays.submit(planned, active.values(), enter, say)
            return 0
    folder.mkdir(mode=0o700)
    run = local.one_by_one if cluster == "debug" else partial(local.locally, parallel=suite.parallel or 1)
    return run(
        waiting,
        folder,
        max_requeues=suite.max_requeues,
        book=enter,
        tell=_tell,
        turn=partial(_turn, suite),
    )


def _active(suite: Suite, cells: Iterable[Config]) -> dict[str, str]:
    """The jobs of these cells of a suite that run or are still to run."""
    entries, faults = submissions.look(suite.runs)
    for fault in faults:
        print(f"sage submit: {fault}", file=sys.stderr, flush=True)
    wanted = unfinished(entries, [cell.folder.name for cell in cells], suite.runs)
    # A copy of a folder of runs may be where there is no SLURM.
    queue = queue_of(wanted) if shutil.which("squeue") else {}
    return {entry.cell: entry.job for entry in wanted if is_active(entry, queue)}


@contextmanager
def _turn(suite: Suite, cell: Config) -> Iterator[bool]:
    """Whether a cell is still to be run here, while no other submission can begin to run it."""
    with submissions.held(suite.runs):
        mine = not is_finished(cell.folder) and not _active(suite, [cell])
        if not mine:
            say(f"{cell.folder.name}: finished, or run by another submission, meanwhile")
        yield mine


def _check_path(suite: Suite, cluster: Cluster) -> None:
    """Refuse a path of logs that SLURM, or submitit, would take for another one."""
    path = str(suite.runs.resolve() / suite.name)
    wrong = [each for each in ("%", "\\") if each in path] if cluster == "slurm" else []
    wrong += [each for each in ("%j", "%t", "%A", "%a") if cluster != "slurm" and each in path]
    if wrong or not path.isprintable():
        what = f"contains {wrong[0]}" if wrong else "contains a control character"
        raise ValueError(
            f"the jobs' logs would be in {path!r}, which {what}; in the path of a log that stands for "
            "something else: rename the suite, or choose another --runs"
        )


def _rehearse(suite: Suite, cells: list[Config], cluster: Cluster, folder: Path) -> None:
    """Say what would be done."""
    named = labels(suite)
    for cell in cells:
        print(f"{cell.folder.name}  {named[cell.folder.name]}".rstrip())
    if cluster == "slurm":
        try:
            most = scheduler.max_array_size()
        except scheduler.Unanswered:
            most = DEFAULT_ARRAY
        for array in arrays.plan(suite, cells, folder, most):
            last = ", when the last has ended" if suite.parallel and array.number else ""
            print(f"\n# sbatch, {len(array.cells)} cells, {array.resources} each{last}")
            print(arrays.Executor(array).script())


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def _tell(cell: Config, entry: Entry, reason: str) -> None:
    """Say what has become of a cell that ran here."""
    try:
        final = result(cell.folder)
        said = f"done, {final[1]}" if final else reason or error(cell.folder, entry)
    except ValueError as fault:
        said = str(fault)
    say(f"{cell.folder.name}: {said}")


def _usual(dry_run: bool) -> Cluster:
    if shutil.which("sbatch") or dry_run:
        return "slurm"
    raise ValueError(
        "there is no sbatch on this machine; call `sage submit` where SLURM is, or say --cluster local to "
        "run the cells here, each in a process of its own, or --cluster debug, all in this one"
    )
