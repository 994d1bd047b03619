"""`sage status`, `sage cancel` and `sage logs`: what has become of cells, without waiting for torch."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from sage import validate
from sage.exit_status import FAILED
from sage.jobs import local, scheduler, submissions
from sage.jobs.logs import logs as logs
from sage.jobs.scheduler import Job
from sage.jobs.selection import booked, meant
from sage.jobs.state import State, States, Word, is_active
from sage.jobs.submissions import Entry
from sage.jobs.sweep import noted
from sage.storage import Unreadable

REFRESH = 5.0
"""Seconds between two looks at the files of what runs."""

FEW = 200
"""Cells that are laid out as a table for a terminal; rich takes seconds for thousands."""

TITLES = ("cell", "settings", "job", "state", "step", "metric", "requeued", "")

COLORS: dict[Word, str] = {
    "running": "cyan",
    "failed": "red",
    "damaged": "red",
    "unknown": "magenta",
    "pending": "yellow",
    "missing": "dim",
    "done": "green",
}
"""The states, those first that are worth a look."""


def main(
    what: Path | None, *, runs: Path | None = None, watching: bool = False, as_json: bool = False
) -> int:
    """Show what has become of a suite's cells, or of all in a folder of runs.

    Args:
        what: a suite's TOML file, or a folder of runs; None: runs.
        runs: where the run folders are; None: as the suite says.
        watching: go on until nothing is active any more.
        as_json: print one JSON object, once.

    Raises:
        ValueError: where the file is wrong, or there is no such folder.
    """
    if watching and as_json:
        raise ValueError("--json prints the states once: leave out --watch, or leave out --json")
    if what is not None and what.suffix == ".toml":
        labels, runs = noted(what, runs)
    else:
        runs = runs or what or Path("runs")
        if not runs.is_dir():
            raise ValueError(f"{runs} is no folder of runs; give one, or a suite's TOML file")
        labels = dict.fromkeys(_known_cells(runs), "")
    if as_json:
        return _print_json(Board(labels, runs))
    return watch(labels, runs, once=not watching)


def cancel(given: Sequence[str], *, runs: Path | None = None) -> int:
    """End the active jobs of cells, or of a suite's cells.

    Args:
        given: suites' TOML files, and cells: a cell's name, its hash, or how one of them begins.
        runs: where the run folders are; None: as the suite says, else runs.

    Raises:
        ValueError: where a file is wrong, or no such cell was submitted.
    """
    wanted: dict[str, Entry] = {}
    suites: set[str] = set()
    for what in given:
        if what.endswith(".toml"):
            cells, where = noted(validate.path(what), runs)
            found = unfinished(booked(where, "cancel"), cells, where)
            suites |= {entry.logs for entry in found}
        else:
            where = runs or Path("runs")
            entries = booked(where, "cancel")
            found = unfinished(entries, [meant(what, entries, where)], where)
        wanted |= {entry.cell: entry for entry in found}
    try:
        queue = queue_of(wanted.values())
        active = [entry for entry in wanted.values() if is_active(entry, queue)]
        scheduler.cancel(entry.job for entry in active if entry.cluster == "slurm")
    except scheduler.Unanswered as error:
        print(f"sage cancel: {error}", file=sys.stderr)
        return 1
    kept = 0
    for entry in active:
        try:
            if entry.cluster == "slurm":
                local.mark_cancelled(entry)
            else:
                local.stop(entry, and_others=entry.logs in suites)
        except PermissionError:
            kept += 1
            print(f"sage cancel: process {entry.job} of {entry.cell} is another user's", file=sys.stderr)
    cancelled = len(active) - kept
    print(f"cancelled: {cancelled} cell{'s' if cancelled != 1 else ''}")
    return FAILED if kept else 0


def watch(labels: Mapping[str, str], runs: Path, *, once: bool = False) -> int:
    """Show the cells' states, and go on until none is active; or only `once`."""
    console = Console(highlight=False)
    board = Board(labels, runs)
    board.look()
    try:
        if once:
            if console.is_terminal and len(labels) <= FEW:
                console.print(board.table(len(labels)))
            else:
                print(board.text())
        elif console.is_terminal:
            _show(board, console)
        else:
            _tell(board, console)
    except KeyboardInterrupt:  # what is watched goes on
        pass
    console.print(board.summary(), soft_wrap=True, markup=False)
    for fault in board.faults:
        print(f"sage status: {fault}", file=sys.stderr)
    return 0


def _print_json(board: "Board") -> int:
    """Print the states of all cells as one JSON object."""
    board.look()
    told = {
        "runs": str(board.runs),
        "cells": [
            {"cell": cell, "settings": board.labels[cell], "state": state.word}
            | {name: getattr(state, name) for name in ("job", "step", "metric", "requeued", "why")}
            for cell, state in board.states.items()
        ],
        "faults": board.faults,
        "slurm_error": board.queue.error,
    }
    print(json.dumps(told, indent=2))
    return 0


def unfinished(entries: Mapping[str, Entry], cells: Iterable[str], runs: Path) -> list[Entry]:
    """The submissions of those of the cells that have no result yet."""
    return [
        entries[cell]
        for cell in cells
        if cell in entries
        and not os.path.exists(runs / cell / "result.json")  # False also where it may not look
    ]


def queue_of(entries: Iterable[Entry]) -> dict[str, Job]:
    """The queue as far as it matters to these submissions; SLURM is not asked where none is its own."""
    users = {entry.user for entry in entries if entry.cluster == "slurm"}
    return scheduler.queue(users) if users else {}


class Board:
    """The states of some cells, kept up to date.

    Args:
        labels: the cells, by name.
    """

    def __init__(
        self, labels: Mapping[str, str], runs: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.labels, self.runs, self._states = labels, runs, States(runs)
        self._entries: dict[str, Entry] = {}
        self.faults: list[str] = []
        """What is wrong with the job book."""
        self.queue = scheduler.Watch(self._ask, clock)
        self.states: dict[str, State] = {}

    def look(self) -> None:
        """See what has changed; SLURM is asked only where it is time to."""
        self.queue.look()
        self.states = {
            cell: self._states.of(cell, self._entries.get(cell), self.queue.jobs) for cell in self.labels
        }

    @property
    def is_active(self) -> bool:
        """Whether anything may still change by itself."""
        return any(state.word in ("pending", "running", "unknown") for state in self.states.values())

    def summary(self) -> str:
        """All in a line."""
        counts = Counter(state.word for state in self.states.values())
        words = [f"{counts[word]} {word}" for word in get_args(Word) if counts[word]]
        requeued = sum(state.requeued for state in self.states.values())
        words += [f"requeued {requeued} times"] if requeued else []
        words += [f"SLURM does not answer: {self.queue.error}"] if self.queue.error else []
        return f"{len(self.states)} cells: {', '.join(words) or 'nothing submitted, nothing run'}"

    def text(self) -> str:
        """All cells, one a line, each line whole."""
        rows = [
            TITLES,
            *(
                (
                    *(cell, self.labels[cell], state.job, state.word, state.step, state.metric),
                    *(str(state.requeued or ""), state.why),
                )
                for cell, state in self.states.items()
            ),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(field.ljust(width) for field, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def table(self, most: int) -> Table:
        """The cells, one a line; where there are more than `most`, those that are worth a look."""
        shown = list(self.states.items())
        if len(shown) > most:
            shown = sorted(shown, key=lambda each: list(COLORS).index(each[1].word))[:most]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in TITLES:
            table.add_column(title, no_wrap=True)
        for cell, state in shown:
            word = f"[{COLORS[state.word]}]{state.word}"
            # What comes from outside may look like rich's own markup.
            first = map(escape, (cell, self.labels[cell], state.job))
            rest = map(escape, (state.step, state.metric, str(state.requeued or ""), state.why))
            table.add_row(*first, word, *rest)
        if len(shown) < len(self.states):
            table.add_row(f"and {len(self.states) - len(shown)} more")
        return table

    def _ask(self) -> dict[str, Job]:
        """The queue, with the book as it stood just before, so that none of its jobs is younger."""
        try:
            entries, self.faults = submissions.look(self.runs)
        except Unreadable as fault:
            entries, self.faults = {}, [f"{fault}; which cells were submitted is unknown"]
        if self.queue.jobs is None:
            self._entries = entries
        queue = queue_of(unfinished(entries, self.labels, self.runs))
        self._entries = entries
        return queue


def _show(board: Board, console: Console) -> None:
    """On a terminal: a table that changes."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(board.table(max(1, console.height - 6)), refresh=True)
            if not board.is_active:
                return
            time.sleep(min(board.queue.seconds, REFRESH))
            board.look()


def _tell(board: Board, console: Console) -> None:
    """Elsewhere: a line whenever it would be another one."""
    said = ""
    while board.is_active:
        if board.summary() != said:
            said = board.summary()
            console.print(said, soft_wrap=True)
        time.sleep(min(board.queue.seconds, REFRESH))
        board.look()


def _known_cells(runs: Path) -> list[str]:
    """The cells in the book, and the folders that are runs, or that this user may not look into."""
    try:
        submitted = set(submissions.read(runs))
    except Unreadable:  # which the board will say
        submitted = set()
    with os.scandir(runs) as found:
        names = [each.name for each in found if not each.name.startswith(".") and each.is_dir()]
    return sorted(submitted.union(name for name in names if _is_run(runs / name)))


def _is_run(folder: Path) -> bool:
    return os.path.exists(folder / "config.json") or not os.access(folder, os.R_OK | os.X_OK)
