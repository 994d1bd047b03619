"""Asks SLURM and tells it: the one place where squeue, scancel and scontrol are called.

sacct is not asked, as many clusters keep no accounts. What has left the queue has left its files.
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
"""Seconds that a call may take."""

SHORTEST, LONGEST = 2.0, 60.0
"""Seconds between two looks at the queue, while much happens there and while nothing does."""

FIELDS = {"JobArrayID": 1024, "State": 16, "RestartCnt": 8, "Reason": 48, "NodeList": 48}
"""What squeue is asked for, and the width of each; all versions of it can pad, few can separate."""

TASKS = re.compile(r"(\d+)(?:_(?:(\d+)|\[([\d,:-]+)(?:%\d+)?\]))?")
"""How squeue names a job, a task of an array, or several of its tasks in one line, as "12_[3-7%2]"."""

MOST_TASKS = 4_000_001
"""SLURM's own bound on the size of an array."""

ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
)
"""States from which SLURM does not bring a job back."""


class Unanswered(RuntimeError):
    """SLURM did not do what it was asked, or did not say."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as it stands in the queue; those that have just ended are there too."""

    state: str
    restarts: int
    reason: str
    nodes: str

    @property
    def active(self) -> bool:
        """Whether it runs or is still to run."""
        return self.state not in ENDED


def queue(users: Collection[str]) -> dict[str, Job]:
    """All jobs of these users that SLURM still knows of, by their names, as "12_3" or "12"; in one call.

    Raises:
        Unanswered: where squeue fails, or prints what is no job; names the line.
    """
    # Not by job id: squeue refuses to answer at all when it no longer knows the one that is asked for.
    columns = ",".join(f"{name}:{width}" for name, width in FIELDS.items())
    asked = [
        "--noheader",
        "--array",
        "--states=all",
        f"--user={','.join(sorted(users))}",
        f"--Format={columns}",
    ]
    jobs = {}
    for line in _call("squeue", *asked).splitlines():
        if not line.strip():
            continue
        name, state, restarts, reason, nodes = _cut(line, FIELDS.values())
        names = tasks(name)
        if not names or not re.fullmatch(r"[A-Z_]+", state) or not re.fullmatch(r"\d{1,9}", restarts):
            shown = clean_text(" ".join(line.split()), 120)
            raise Unanswered(f"squeue printed a line that is not a job: {shown!r}")
        for each in names:
            jobs[each] = Job(state=state, restarts=int(restarts), reason=reason, nodes=nodes)
    return jobs


def tasks(name: str) -> list[str]:
    """The jobs that one of squeue's names stands for; none where it is no such name.

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
    """The ids of the jobs with this name and comment, of an array only the array's."""
    told = _call(
        "squeue", "--noheader", f"--user={user}", f"--name={name}", "--Format=ArrayJobID:32,Comment:1024"
    )
    return {job for job, said in (_cut(line, (32, 1024)) for line in told.splitlines()) if said == comment}


def cancel(jobs: Iterable[str]) -> None:
    """End these jobs, those of one array at once."""
    arrays: defaultdict[str, set[int]] = defaultdict(set)
    for job in jobs:
        array, _, index = job.partition("_")
        arrays[array] |= {int(index)} if index else set()
    named = [f"{array}_[{_ranges(indices)}]" if indices else array for array, indices in arrays.items()]
    if named:
        _call("scancel", *named)


def max_array_size() -> int:
    """How many tasks an array can have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config"), re.MULTILINE)
    # 0 stands for no arrays at all, and a submission of one cell is none.
    return max(1, int(found[1])) if found else 1001


class Watch:
    """Looks at the queue now and then: half as often each time that nothing has changed, or no answer came.

    Args:
        ask: what gives the queue, or raises Unanswered.
        clock: gives the time in seconds.
    """

    def __init__(
        self, ask: Callable[[], dict[str, Job]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask, self._clock = ask, clock
        self._interval = SHORTEST
        self._due = clock()
        self.jobs: dict[str, Job] | None = None
        """The queue when it was last seen; None: never yet."""
        self.error = ""
        """Why the last look failed, if it did."""

    def look(self) -> bool:
        """Ask if it is time to; whether that was so."""
        if self._clock() < self._due:
            return False
        seen = self.jobs
        try:
            seen, self.error = self._ask(), ""
        except Unanswered as error:
            self.error = str(error)
        changed = seen != self.jobs
        self.jobs = seen
        self._interval = SHORTEST if changed else min(2 * self._interval, LONGEST)
        self._due = self._clock() + self._interval
        return True

    @property
    def seconds(self) -> float:
        """How long it is until the next look."""
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
    """The fields of a line, each of them so wide."""
    start, fields = 0, []
    for width in widths:
        fields.append(line[start : start + width].strip())
        start += width
    return fields


def _ranges(indices: Iterable[int]) -> str:
    """Whole numbers as SLURM lists them.

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
