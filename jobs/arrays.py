"""Submission of a sweep's runs to SLURM as job arrays, through submitit."""

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
from sage.jobs import container, intents, scheduler
from sage.jobs.environment import for_python, for_slurm, only, umask
from sage.jobs.resources import NOTICE, Resources, resources
from sage.jobs.run_job import RunJob
from sage.jobs.submissions import Entry
from sage.jobs.sweep import Sweep
from sage.output.text import clean_text

BATCH = Path(__file__).resolve().with_name("batch.sh")

PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds to wait after each attempt of sbatch that got no answer from SLURM."""

BUSY = re.compile(r"timed? ?out|unable to contact|connection|temporarily|try again|standby", re.IGNORECASE)
"""Messages of sbatch after which the same call may succeed a moment later."""


@dataclass(frozen=True, kw_only=True)
class Array:
    """Runs that need the same resources, and so fit into one job array."""

    sweep: str
    folder: Path
    """The folder for submitit's files of these jobs."""
    number: int
    """Index of the array within its submission."""
    configs: list[Config]
    resources: Resources
    parallel: int | None
    """Maximum number of runs at a time; None: no limit."""
    max_requeues: int
    after: frozenset[str] = frozenset()
    """Jobs that have to end before this array starts."""

    @property
    def name(self) -> str:
        """The jobs' name in the queue."""
        return f"sage-{self.sweep}"

    @property
    def comment(self) -> str:
        """A comment that no other job has."""
        return f"{self.folder.name}/{self.number}"


class Executor(SlurmExecutor):
    """submitit's executor for one array. It can write its batch script on a machine without SLURM too."""

    def __init__(self, array: Array) -> None:
        given = dict(array.resources.options)
        in_container = container.srun_options(given, _folders(array))
        super().__init__(array.folder, python=container.PYTHON if in_container else None)
        options = {name: value for name, value in given.items() if name not in container.OPTIONS}
        if array.after:
            added = ["afterany:" + ":".join(sorted(array.after))]
            options["dependency"] = ",".join(
                [str(options["dependency"]), *added] if "dependency" in options else added
            )
        self._options = frozenset(options)
        cpus = array.resources.cpus_per_task
        self.update_parameters(
            job_name=array.name,
            comment=array.comment,
            nodes=array.resources.nodes,
            ntasks_per_node=array.resources.tasks_per_node,
            time=None,  # submitit's default is five minutes
            wckey=None,
            array_parallelism=array.parallel or len(array.configs),
            signal_delay_s=NOTICE,
            stderr_to_stdout=True,
            additional_parameters={**options, "requeue": True},
            setup=_setup(array),
            # srun does not take --cpus-per-task over from sbatch (since SLURM 22.05), nor --open-mode for its
            # own files. With sbatch's --export=NONE, tasks would lack the variables exported above.
            srun_args=[
                "--export=ALL",
                "--kill-on-bad-exit=1",
                "--distribution=block",
                "--open-mode=append",
                *([f"--cpus-per-task={cpus}"] if cpus else []),
                *in_container,
            ],
            teardown=["sage_finish $?"],
        )
        self.run_jobs = [
            RunJob(_with_absolute_paths(config), max_requeues=array.max_requeues) for config in array.configs
        ]
        if len(self.run_jobs) > 1:
            self.parameters["map_count"] = len(self.run_jobs)

    @classmethod
    def affinity(cls) -> int:
        """Do not look for srun on this machine; sbatch reports a missing one."""
        return 2

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m sage.jobs.entry {shlex.quote(str(self.folder))}"

    def script(self) -> str:
        """The batch script that `submit` would pass to sbatch."""
        text: str = self._make_submission_file_text(self._submitit_command_str, "")
        return text

    def submit_runs(self) -> list[str]:
        """Submit all runs as one job or array, and return the job id of each.

        The pickles are written before sbatch is called, and are renamed to their job ids after it. Only this
        user can read or write them. The umask is unchanged during sbatch, because SLURM passes it to the job.
        """
        drafts = []
        for run_job in self.run_jobs:
            draft = self.folder / f"{uuid.uuid4().hex}.pkl"
            delayed = DelayedSubmission(run_job)
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
        tasks = len(self.run_jobs) if len(self.run_jobs) > 1 else 0
        names = [f"{job.job_id}_{task}" for task in range(tasks)] or [str(job.job_id)]
        for name, draft in zip(names, drafts, strict=True):
            draft.rename(JobPaths(self.folder, name).submitted_pickle)
        for script in self.folder.glob("*.sh"):
            script.chmod(0o600)
        return names


def plan(sweep: Sweep, configs: Iterable[Config], folder: Path, most: int) -> list[Array]:
    """The fewest arrays of runs with equal resources, with at most `most` runs each."""
    groups: dict[Resources, list[Config]] = {}
    for config in configs:
        groups.setdefault(resources(config), []).append(config)
    chunks = [
        (needed, group[start : start + most])
        for needed, group in groups.items()
        for start in range(0, len(group), most)
    ]
    return [
        Array(
            sweep=sweep.name,
            folder=folder,
            number=number,
            configs=chunk,
            resources=needed,
            parallel=sweep.parallel,
            max_requeues=sweep.max_requeues,
        )
        for number, (needed, chunk) in enumerate(chunks)
    ]


def submit(
    planned: Iterable[Array],
    active: Collection[str],
    record: Callable[[list[Entry]], None],
    echo: Callable[[str], None],
) -> None:
    """Submit the arrays, and record each in the submission log as soon as SLURM has accepted it.

    SLURM limits how many tasks of one array run at once. To apply the limit to the whole sweep, each array
    waits for the previous one, and the first array waits for the jobs that are already active.

    Raises:
        ValueError: SLURM refuses an array; the message has its reason.
        Unanswered: SLURM does not answer for minutes.
        OSError: the submission log cannot be written; the array that is missing from it is cancelled.
    """
    after = frozenset(job.partition("_")[0] for job in active)
    for array in planned:
        if array.parallel is not None:
            array = replace(array, after=after)
        intent = intents.write(array.folder, array.name, array.comment)
        try:
            jobs = _accepted(array, echo)
            record(
                [
                    Entry(run=config.folder.name, job=job, cluster="slurm", logs=str(array.folder.resolve()))
                    for config, job in zip(array.configs, jobs, strict=True)
                ]
            )
        except BaseException as error:
            _cancel_unrecorded(array, intent, error)
            raise
        intent.unlink()
        first = jobs[0].partition("_")[0]
        after = frozenset([first])
        limit = f", at most {array.parallel} at once" if array.parallel else ""
        echo(f"submitted as job {first}: {len(jobs)} runs, {array.resources} each{limit}")


def _accepted(array: Array, echo: Callable[[str], None]) -> list[str]:
    """Call sbatch until it accepts the array; returns the job id of each run."""
    executor = Executor(array)
    for pause in PAUSES:
        try:
            return executor.submit_runs()
        except FailedJobError as error:
            refusal = clean_text(" ".join(str(error).split()), 1000)
            if not BUSY.search(refusal):
                raise ValueError(f"SLURM refuses the job: {refusal}") from error
            echo(f"sbatch got no answer ({refusal}); trying again in {pause:g} s")
        time.sleep(pause)
        # SLURM may have accepted the job nevertheless. Its pickle does not exist, so it is cancelled.
        scheduler.cancel(scheduler.find(array.name, array.comment, str(os.getuid())))
    raise scheduler.Unanswered(
        f"sbatch got no answer {len(PAUSES)} times; arrays submitted before this one stay submitted"
    )


def _cancel_unrecorded(array: Array, intent: Path, error: BaseException) -> None:
    """Cancel an array that SLURM may have accepted and that is not in the submission log.

    Where that fails, the intent file stays, and the next submission cancels the array.
    """
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
    if len(array.configs) == 1:
        number = "${SLURM_JOB_ID}"
    # Where sbatch is called inside another job or array, it passes that one's variables on.
    leftovers = "unset hostip port rank world_size local_rank"
    if len(array.configs) == 1:
        leftovers += " ${!SLURM_ARRAY_*}"
    return [
        leftovers,
        *_exports({"max_requeues": str(array.max_requeues), **for_python()}),
        f"source {shlex.quote(str(BATCH))}",
        f"sage_find_run {folder}/{number}_submitted.pkl {folder}/../lock",
        f"sage_set_rendezvous {folder}",
        'srun() { command srun "$@" & sage_wait $!; }',  # the next line of the script calls srun
    ]


def _folders(array: Array) -> list[Path]:
    """The folders that ranks read and write: the working directory first."""
    data = [config.data_root.resolve() for config in array.configs if config.data_root is not None]
    return [Path.cwd(), *(config.runs.resolve() for config in array.configs), *data]


def _with_absolute_paths(config: Config) -> Config:
    """The configuration with absolute paths, which are valid in any folder that the job starts in."""
    return replace(
        config, runs=config.runs.resolve(), data_root=config.data_root and config.data_root.resolve()
    )


def _exports(variables: dict[str, str]) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
