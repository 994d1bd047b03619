"""Submits cells to SLURM as job arrays, through submitit."""

import os
import re
import shlex
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from submitit import SlurmExecutor
from submitit.core.utils import DelayedSubmission, FailedJobError, JobPaths

from sage.config import Config
from sage.jobs import intents, scheduler
from sage.jobs.environment import for_python, for_slurm, only, umask
from sage.jobs.resources import NOTICE, Resources, resources
from sage.jobs.run_job import Cell
from sage.jobs.submissions import Entry
from sage.jobs.sweep import Suite
from sage.output.text import clean_text

BATCH = Path(__file__).resolve().with_name("batch.sh")

PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds to wait after each sbatch that got no answer."""

BUSY = re.compile(r"timed? ?out|unable to contact|connection|temporarily|try again|standby", re.IGNORECASE)
"""What sbatch says where the same call may go better in a moment."""


@dataclass(frozen=True, kw_only=True)
class Array:
    """Cells that ask for the same, and so can be one job array."""

    suite: str
    folder: Path
    """Where submitit keeps what belongs to the jobs."""
    number: int
    """Counts the arrays of a submission."""
    cells: list[Config]
    resources: Resources
    parallel: int | None
    """How many of the cells may run at once; None: all."""
    max_requeues: int
    after: frozenset[str] = frozenset()
    """Jobs that have to end first."""

    @property
    def name(self) -> str:
        """What the jobs are called in the queue."""
        return f"sage-{self.suite}"

    @property
    def comment(self) -> str:
        """What no other job's comment is."""
        return f"{self.folder.name}/{self.number}"


class Executor(SlurmExecutor):
    """submitit's executor for one array; it also writes its batch script where there is no SLURM."""

    def __init__(self, array: Array) -> None:
        super().__init__(array.folder)
        options = dict(array.resources.options)
        if array.after:
            first = ["afterany:" + ":".join(sorted(array.after))]
            options["dependency"] = ",".join(
                [str(options["dependency"]), *first] if "dependency" in options else first
            )
        self._options = frozenset(options)
        cpus = array.resources.cpus_per_task
        self.update_parameters(
            job_name=array.name,
            comment=array.comment,
            nodes=array.resources.nodes,
            ntasks_per_node=array.resources.tasks_per_node,
            time=None,  # submitit's own default would be five minutes
            wckey=None,
            array_parallelism=array.parallel or len(array.cells),
            signal_delay_s=NOTICE,
            stderr_to_stdout=True,
            additional_parameters={**options, "requeue": True},
            setup=_setup(array),
            # srun takes neither --cpus-per-task (SLURM 22.05) nor, for its own files, --open-mode over, and
            # of sbatch's --export=NONE it would make tasks without what the lines above export.
            srun_args=[
                "--export=ALL",
                "--kill-on-bad-exit=1",
                "--distribution=block",
                "--open-mode=append",
                *([f"--cpus-per-task={cpus}"] if cpus else []),
            ],
            teardown=["sage_end $?"],
        )
        self.cells = [Cell(_at_home(cell), max_requeues=array.max_requeues) for cell in array.cells]
        if len(self.cells) > 1:
            self.parameters["map_count"] = len(self.cells)

    @classmethod
    def affinity(cls) -> int:
        """That there is an srun is for sbatch to find out."""
        return 2

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m sage.jobs.entry {shlex.quote(str(self.folder))}"

    def script(self) -> str:
        """The batch script that `submit` would submit."""
        text: str = self._make_submission_file_text(self._submitit_command_str, "")
        return text

    def submit_cells(self) -> list[str]:
        """Submit all cells as one job, and return the job of each.

        The pickles are written before sbatch is called, and get their jobs' names after it. They are this
        user's alone; the umask during sbatch, which SLURM hands on to the job, is what it was.
        """
        drafts = []
        for cell in self.cells:
            draft = self.folder / f"{uuid.uuid4().hex}.pkl"
            delayed = DelayedSubmission(cell)
            delayed.set_timeout(0, self.max_num_timeout)
            with umask():
                delayed.dump(draft)
            drafts.append(draft)
        try:
            with only(for_slurm(self._options)):
                job = self._submit_command(self._submitit_command_str)
        except BaseException:
            for draft in drafts:
                draft.unlink(missing_ok=True)
            raise
        tasks = len(self.cells) if len(self.cells) > 1 else 0
        names = [f"{job.job_id}_{task}" for task in range(tasks)] or [str(job.job_id)]
        for name, draft in zip(names, drafts, strict=True):
            draft.rename(JobPaths(self.folder, name).submitted_pickle)
        for script in self.folder.glob("*.sh"):
            script.chmod(0o600)
        return names


def plan(suite: Suite, cells: Iterable[Config], folder: Path, most: int) -> list[Array]:
    """As few arrays as can be: each asks for the same resources and has no more than `most` cells."""
    groups: dict[Resources, list[Config]] = {}
    for cell in cells:
        groups.setdefault(resources(cell), []).append(cell)
    chunks = [
        (asked, group[start : start + most])
        for asked, group in groups.items()
        for start in range(0, len(group), most)
    ]
    return [
        Array(
            suite=suite.name,
            folder=folder,
            number=number,
            cells=chunk,
            resources=asked,
            parallel=suite.parallel,
            max_requeues=suite.max_requeues,
        )
        for number, (asked, chunk) in enumerate(chunks)
    ]


def submit(
    planned: Iterable[Array],
    active: Collection[str],
    book: Callable[[list[Entry]], None],
    say: Callable[[str], None],
) -> None:
    """Submit the arrays, and book each as soon as SLURM has accepted it.

    SLURM bounds how many tasks of one array run at once. For the bound to hold for the whole suite, each
    array waits for the one before it, and the first for the jobs that are active already.

    Raises:
        ValueError: where SLURM refuses, with its reason.
        Unanswered: where it does not answer, for minutes.
        OSError: where the book cannot be written; the array that is not in it is cancelled.
    """
    after = frozenset(job.partition("_")[0] for job in active)
    for array in planned:
        if array.parallel is not None:
            array = replace(array, after=after)
        intent = intents.write(array.folder, array.name, array.comment)
        try:
            jobs = _accepted(array, say)
            book(
                [
                    Entry(cell=cell.folder.name, job=job, cluster="slurm", logs=str(array.folder.resolve()))
                    for cell, job in zip(array.cells, jobs, strict=True)
                ]
            )
        except BaseException as error:
            _take_back(array, intent, error)
            raise
        intent.unlink()
        first = jobs[0].partition("_")[0]
        after = frozenset([first])
        bound = f", at most {array.parallel} at once" if array.parallel else ""
        say(f"submitted as job {first}: {len(jobs)} cells, {array.resources} each{bound}")


def _accepted(array: Array, say: Callable[[str], None]) -> list[str]:
    """The cells' jobs, once sbatch has said that it took them."""
    executor = Executor(array)
    for pause in PAUSES:
        try:
            return executor.submit_cells()
        except FailedJobError as error:
            refusal = clean_text(" ".join(str(error).split()), 1000)
            if not BUSY.search(refusal):
                raise ValueError(f"SLURM refuses the job: {refusal}") from error
            say(f"no answer from sbatch ({refusal}); trying again in {pause:g} s")
        time.sleep(pause)
        # SLURM may have taken it all the same; what such a job would run has not been put in its place.
        scheduler.cancel(scheduler.find(array.name, array.comment, str(os.getuid())))
    raise scheduler.Unanswered(
        f"sbatch got no answer {len(PAUSES)} times; what was submitted before stays submitted"
    )


def _take_back(array: Array, intent: Path, error: BaseException) -> None:
    """Cancel what SLURM may have taken of an array that is not in the book; else the next submission does."""
    if isinstance(error, ValueError) and "SLURM refuses the job" in str(error):
        intent.unlink(missing_ok=True)
        return
    with suppress(scheduler.Unanswered):
        scheduler.cancel(scheduler.find(array.name, array.comment, str(os.getuid())))
        with suppress(OSError):
            intent.unlink(missing_ok=True)


def _setup(array: Array) -> list[str]:
    """The lines of the batch script before srun."""
    folder = shlex.quote(str(array.folder.resolve()))
    number = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    if len(array.cells) == 1:
        number = "${SLURM_JOB_ID}"
    # What sbatch hands on from where it is called: another job, another array.
    leftovers = "unset hostip port rank world_size local_rank"
    if len(array.cells) == 1:
        leftovers += " ${!SLURM_ARRAY_*}"
    return [
        leftovers,
        *_exports({"max_requeues": str(array.max_requeues), **for_python()}),
        f"source {shlex.quote(str(BATCH))}",
        f"sage_find_cell {folder}/{number}_submitted.pkl {folder}/../lock",
        f"sage_meet {folder}",
        'srun() { command srun "$@" & sage_await $!; }',  # which is what the script's next line calls
    ]


def _at_home(cell: Config) -> Config:
    """The cell with paths that do not depend on where its job finds itself."""
    return replace(cell, runs=cell.runs.resolve(), data_root=cell.data_root and cell.data_root.resolve())


def _exports(variables: dict[str, str]) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
