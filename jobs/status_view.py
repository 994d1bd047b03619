"""The states of some runs, read again on request, and their display as text."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import get_args

from sage.jobs import scheduler, submissions
from sage.jobs.scheduler import Job
from sage.jobs.state import State, States, Word
from sage.jobs.submissions import Entry
from sage.storage import Unreadable

REFRESH = 5.0
"""Seconds between two reads of the active runs' files."""

TITLES = ("run", "settings", "job", "state", "step", "metric", "requeued", "")


def unfinished(entries: Mapping[str, Entry], names: Iterable[str], runs: Path) -> list[Entry]:
    """The submissions of the named runs that have no result yet."""
    return [
        entries[name]
        for name in names
        if name in entries
        and not os.path.exists(runs / name / "result.json")  # False too if the folder may not be read
    ]


def queue_of(entries: Iterable[Entry]) -> dict[str, Job]:
    """The queue of these submissions' users; SLURM is not called if none of them is a SLURM job."""
    users = {entry.user for entry in entries if entry.cluster == "slurm"}
    return scheduler.queue(users) if users else {}


class StatusView:
    """The states of some runs, and their display.

    Args:
        labels: the settings to show, by run name.
        runs: the runs folder.
        clock: returns the time in seconds.
    """

    def __init__(
        self, labels: Mapping[str, str], runs: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.labels, self.runs, self._states = labels, runs, States(runs)
        self._entries: dict[str, Entry] = {}
        self.faults: list[str] = []
        """Faults of the submission log."""
        self.queue = scheduler.QueuePoller(self._query, clock)
        self.states: dict[str, State] = {}

    def update(self) -> None:
        """Read the states anew; SLURM is queried only if the poller's interval has passed."""
        self.queue.poll()
        self.states = {
            name: self._states.of(name, self._entries.get(name), self.queue.jobs) for name in self.labels
        }

    @property
    def is_active(self) -> bool:
        """Whether any state may still change without a new submission."""
        return any(state.word in ("pending", "running", "unknown") for state in self.states.values())

    def summary(self) -> str:
        """The number of runs in each state, in one line."""
        counts = Counter(state.word for state in self.states.values())
        words = [f"{counts[word]} {word}" for word in get_args(Word) if counts[word]]
        requeued = sum(state.requeued for state in self.states.values())
        words += [f"requeued {requeued} times"] if requeued else []
        words += [f"SLURM does not answer: {self.queue.error}"] if self.queue.error else []
        return f"{len(self.states)} runs: {', '.join(words) or 'none submitted or started'}"

    def text(self) -> str:
        """All runs as text, one per line, without cutting lines."""
        rows = [
            TITLES,
            *(
                (
                    *(name, self.labels[name], state.job, state.word, state.step, state.metric),
                    *(str(state.requeued or ""), state.why),
                )
                for name, state in self.states.items()
            ),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(field.ljust(width) for field, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def _query(self) -> dict[str, Job]:
        """The queue; the submission log is read before it, so that the queue has every job in the log."""
        try:
            entries, self.faults = submissions.read_with_faults(self.runs)
        except Unreadable as fault:
            entries, self.faults = {}, [f"{fault}; it is unknown which runs were submitted"]
        if self.queue.jobs is None:
            self._entries = entries
        queue = queue_of(unfinished(entries, self.labels, self.runs))
        self._entries = entries
        return queue
