"""SLURM's queue: the one place where squeue, scancel and scontrol are called.

sacct is not used, because many clusters keep no accounting records. The state of a job that has left the
queue comes from its files.
"""

import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from sage.jobs.environment import for_slurm
from sage.output.text import clean_text

TIMEOUT = 60.0
"""Time limit of a call in seconds."""

SHORTEST, LONGEST = 2.0, 60.0
"""Seconds between two queries of the queue: the shortest after a change, the longest without changes."""

FIELDS = {"JobArrayID": 1024, "State": 16, "RestartCnt": 8, "Reason": 48, "NodeList": 48}
"""squeue's output fields and their widths. All versions can pad fields, few can separate them."""

TASKS = re.compile(r"(\d+)(?:_(?:(\d+)|\[([\d,:-]+)(?:%\d+)?\]))?")
"""squeue's name of a job, of an array task, or of several tasks in one line, as "12_[3-7%2]"."""

MOST_TASKS = 4_000_001
"""SLURM's own limit on the size of an array."""

ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
)
"""Final states: SLURM does not restart a job that has one of them."""


class Unanswered(RuntimeError):
    """A SLURM command failed, timed out or printed something unexpected."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job in the queue. SLURM lists jobs that have ended for some minutes too."""

    state: str
    restarts: int
    reason: str
    nodes: str

    @property
    def active(self) -> bool:
        """Whether the job is running or pending."""
        return self.state not in ENDED


def queue(users: Collection[str]) -> dict[str, Job]:
    """All jobs of these users that squeue lists, by job id, as "12_3" or "12"; in one call.

    Raises:
        Unanswered: squeue fails, or prints a line that is not a job; the message has the line.
    """
    # Not by job id: squeue fails if the requested job has ended long ago.
    columns = ",".join(f"{name}:{width}" for name, width in FIELDS.items())
    arguments = [
        "--noheader",
        "--array",
        "--states=all",
        f"--user={','.join(sorted(users))}",
        f"--Format={columns}",
    ]
    jobs = {}
    for line in _call("squeue", *arguments).splitlines():
        if not line.strip():
            continue
        name, state, restarts, reason, nodes = _cut(line, FIELDS.values())
        names = tasks(name)
        if not names or not re.fullmatch(r"[A-Z_]+", state) or not re.fullmatch(r"\d{1,9}", restarts):
            shown = clean_text(" ".join(line.split()), 120)
            raise Unanswered(f"squeue printed a line that is not a job: {shown!r}")
        for job_id in names:
            jobs[job_id] = Job(state=state, restarts=int(restarts), reason=reason, nodes=nodes)
    return jobs


def tasks(name: str) -> list[str]:
    """The job ids that one of squeue's names denotes; an empty list for a malformed name.

    >>> tasks("12"), tasks("12_3"), tasks("12_[1,4-6%2]"), tasks("12_[0-4:2]"), tasks("12_[1,...]")
    (['12'], ['12_3'], ['12_1', '12_4', '12_5', '12_6'], ['12_0', '12_2', '12_4'], [])
    """
    found = TASKS.fullmatch(name)
    if not found:
        return []
    array, _, several = found.groups()
    if several is None:
        return [name]
    indices: list[int] = []
    for part in several.split(","):
        span = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7})(?::(\d{1,7}))?)?", part)
        if not span:
            return []
        first, last, step = int(span[1]), int(span[2] or span[1]), int(span[3] or 1)
        if step == 0 or last >= MOST_TASKS or len(indices) > MOST_TASKS:
            return []
        indices += range(first, last + 1, step)
    return [f"{array}_{index}" for index in indices]


def find(name: str, comment: str, user: str) -> set[str]:
    """The ids of the jobs with this name and comment; for an array, the array's id only."""
    output = _call(
        "squeue", "--noheader", f"--user={user}", f"--name={name}", "--Format=ArrayJobID:32,Comment:1024"
    )
    lines = (_cut(line, (32, 1024)) for line in output.splitlines())
    return {job for job, found in lines if found == comment}


def cancel(jobs: Iterable[str]) -> None:
    """Cancel these jobs, all tasks of one array together."""
    arrays: defaultdict[str, set[int]] = defaultdict(set)
    for job in jobs:
        array, _, index = job.partition("_")
        arrays[array] |= {int(index)} if index else set()
    named = [f"{array}_[{_ranges(indices)}]" if indices else array for array, indices in arrays.items()]
    if named:
        _call("scancel", *named)


def max_array_size() -> int:
    """The largest number of tasks in an array."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config"), re.MULTILINE)
    # 0 means that arrays are disabled; a submission of one run is no array.
    return max(1, int(found[1])) if found else 1001


class QueuePoller:
    """Polls the queue; the interval doubles after each query without a change or without an answer.

    Args:
        query: returns the queue, or raises Unanswered.
        clock: returns the time in seconds.
    """

    def __init__(
        self, query: Callable[[], dict[str, Job]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._query, self._clock = query, clock
        self._interval = SHORTEST
        self._due = clock()
        self.jobs: dict[str, Job] | None = None
        """The queue at the last successful query; None: there was none yet."""
        self.error = ""
        """Why the last query failed; "" if it did not."""

    def poll(self) -> bool:
        """Query the queue if the interval has passed; returns whether it had."""
        if self._clock() < self._due:
            return False
        jobs = self.jobs
        try:
            jobs, self.error = self._query(), ""
        except Unanswered as error:
            self.error = str(error)
        changed = jobs != self.jobs
        self.jobs = jobs
        self._interval = SHORTEST if changed else min(2 * self._interval, LONGEST)
        self._due = self._clock() + self._interval
        return True

    @property
    def seconds(self) -> float:
        """Seconds until the next query is due."""
        return max(0.0, self._due - self._clock())


def _call(*command: str) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT,
            check=False,
            env=for_slurm(),
        )
    except FileNotFoundError as cause:
        raise Unanswered(f"there is no {command[0]} on this machine") from cause
    except OSError as cause:
        raise Unanswered(f"{command[0]} cannot be run: {cause.strerror or cause}") from cause
    except subprocess.TimeoutExpired as cause:
        raise Unanswered(f"{command[0]} did not answer within {TIMEOUT:g} s") from cause
    if done.returncode:
        raise Unanswered(
            f"{command[0]} ended with {done.returncode}: {clean_text(' '.join(done.stderr.split()), 1000)}"
        )
    return done.stdout


def _cut(line: str, widths: Iterable[int]) -> list[str]:
    """The fields of a line with fields of these widths."""
    start, fields = 0, []
    for width in widths:
        fields.append(line[start : start + width].strip())
        start += width
    return fields


def _ranges(indices: Iterable[int]) -> str:
    """Integers in SLURM's notation for lists.

    >>> _ranges({0, 1, 2, 3, 7, 9, 10})
    '0-3,7,9-10'
    """
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1][1:] = [index]
        else:
            runs.append([index])
    return ",".join("-".join(map(str, run)) for run in runs)
