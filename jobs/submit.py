"""`sage submit`: have those cells of a suite run that are neither finished nor under way."""

import secrets
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import get_args

from sage.config import Config
from sage.jobs import arrays, book, here, scheduler
from sage.jobs.book import Cluster, Entry
from sage.jobs.state import error, is_active, result
from sage.jobs.status import queue_of, unfinished, watch
from sage.jobs.suite import Suite, labels, note, read
from sage.parser import Parser

DEFAULT_ARRAY = 1001
"""SLURM's own MaxArraySize, for a dry run where there is no SLURM."""


def main(argv: Sequence[str]) -> int:
    """Run those cells of a suite that are neither finished nor under way."""
    parser = Parser(prog="sage submit", description=main.__doc__)
    parser.add_argument("suite", type=Path, help="a TOML file of a run's keys, in which lists make cells")
    parser.add_argument(
        "--cluster",
        choices=get_args(Cluster),
        help="slurm; local: processes here, until all are done; debug: this process, one after another",
    )
    parser.add_argument(
        "--runs", type=Path, help="where the run folders are; none: as the suite says, else runs"
    )
    parser.add_argument(
        "--parallel", type=int, help="how many cells may run at once; none: as the suite says"
    )
    parser.add_argument("--max-requeues", type=int, help="how often a failed cell is tried again")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the cells and batch scripts, and do nothing"
    )
    parser.add_argument(
        "--watch", action="store_true", help="show what becomes of them, until all have ended"
    )
    given = parser.parse_args(argv)
    cluster = given.cluster or _usual(given.dry_run)
    suite = read(given.suite, given.runs, parallel=given.parallel, max_requeues=given.max_requeues)
    try:
        with nullcontext() if given.dry_run else book.claimed(suite.runs, suite.name):
            status = _submit(suite, cluster, dry_run=given.dry_run)
        if given.watch and not given.dry_run:
            return watch(labels(suite), suite.runs)
    except scheduler.Unanswered as error:
        print(f"sage submit: {error}", file=sys.stderr)
        return 1
    return status


def _submit(suite: Suite, cluster: Cluster, *, dry_run: bool) -> int:
    todo = [cell for cell in suite.cells if not (cell.folder / "result.json").exists()]
    active = _active(suite)
    waiting = [cell for cell in todo if cell.folder.name not in active]
    print(
        f"{len(suite.cells)} cells: {len(suite.cells) - len(todo)} finished, {len(active)} active, "
        f"{len(waiting)} to {'run' if cluster != 'slurm' else 'submit'}",
        flush=True,
    )
    folder = book.folder(suite.runs) / f"{suite.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if dry_run:
        _rehearse(suite, waiting, cluster, folder)
        return 0
    note(suite)
    if not waiting:
        return 0
    enter = partial(book.write, suite.runs)
    if cluster == "slurm":
        planned = arrays.plan(suite, waiting, folder, scheduler.max_array_size())
        folder.mkdir()
        arrays.submit(planned, active.values(), enter, partial(print, flush=True))
        return 0
    folder.mkdir()
    if cluster == "debug":
        return here.one_by_one(waiting, folder, max_requeues=suite.max_requeues, book=enter, tell=_tell)
    return here.locally(
        waiting,
        folder,
        parallel=suite.parallel or 1,
        max_requeues=suite.max_requeues,
        book=enter,
        tell=_tell,
    )


def _active(suite: Suite) -> dict[str, str]:
    """The jobs of the suite's cells that run or are still to run."""
    wanted = unfinished(book.read(suite.runs), [cell.folder.name for cell in suite.cells], suite.runs)
    # A copy of a folder of runs may be where there is no SLURM.
    queue = queue_of(wanted) if shutil.which("squeue") else {}
    return {entry.cell: entry.job for entry in wanted if is_active(entry, queue)}


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


def _tell(cell: Config, entry: Entry) -> None:
    """Say what has become of a cell that ran here."""
    final = result(cell.folder)
    print(f"{cell.folder.name}: {f'done, {final[1]}' if final else error(cell.folder, entry)}", flush=True)


def _usual(dry_run: bool) -> Cluster:
    if shutil.which("sbatch") or dry_run:
        return "slurm"
    raise ValueError(
        "there is no sbatch on this machine; call `sage submit` where SLURM is, or say --cluster local to "
        "run the cells here, each in a process of its own, or --cluster debug, all in this one"
    )
