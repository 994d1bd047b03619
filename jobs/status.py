"""`sage status`, `sage cancel` and `sage logs`: the states of submitted runs, without importing torch."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sage import validate
from sage.exit_status import FAILED
from sage.jobs import local_process, scheduler, submissions
from sage.jobs.logs import logs as logs
from sage.jobs.selection import select_run, submitted_runs
from sage.jobs.state import is_active
from sage.jobs.status_view import REFRESH, StatusView, queue_of, unfinished
from sage.jobs.submissions import Entry
from sage.storage import Unreadable

FEW = 200
"""The largest number of runs shown as a rich table; rich takes seconds for thousands."""


def main(
    what: Path | None, *, runs: Path | None = None, watching: bool = False, as_json: bool = False
) -> int:
    """Show the states of a sweep's runs, or of all runs in a runs folder.

    Args:
        what: a sweep's TOML file or a runs folder; None: runs.
        runs: the runs folder; None: the sweep's `runs`.
        watching: update until no run is active any more.
        as_json: print one JSON object, once.

    Raises:
        ValueError: the sweep is invalid, or the folder does not exist.
    """
    if watching and as_json:
        raise ValueError("--json prints the states once: leave out --watch, or leave out --json")
    if what is not None and what.suffix == ".toml":
        from sage.jobs.sweep import noted  # here, because a folder needs nothing of it

        labels, runs = noted(what, runs)
    else:
        runs = runs or what or Path("runs")
        if not runs.is_dir():
            raise ValueError(f"{runs} is not a runs folder; give one, or a sweep's TOML file")
        labels = dict.fromkeys(known_runs(runs), "")
    if as_json:
        return _print_json(StatusView(labels, runs))
    return watch(labels, runs, once=not watching)


def cancel(given: Sequence[str], *, runs: Path | None = None) -> int:
    """Cancel the active jobs of runs, or of all runs of a sweep.

    Args:
        given: sweeps' TOML files, and runs' names or hashes, or the beginning of either.
        runs: the runs folder; None: the sweep's `runs`, else runs.

    Raises:
        ValueError: a sweep is invalid, or a run was not submitted.
    """
    wanted: dict[str, Entry] = {}
    sweeps: set[str] = set()
    for what in given:
        if what.endswith(".toml"):
            from sage.jobs.sweep import noted

            names, where = noted(validate.path(what), runs)
            found = unfinished(submitted_runs(where, "cancel"), names, where)
            sweeps |= {entry.logs for entry in found}
        else:
            where = runs or Path("runs")
            entries = submitted_runs(where, "cancel")
            found = unfinished(entries, [select_run(what, entries, where)], where)
        wanted |= {entry.run: entry for entry in found}
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
                local_process.mark_cancelled(entry)
            else:
                local_process.stop(entry, and_others=entry.logs in sweeps)
        except PermissionError:
            kept += 1
            print(f"sage cancel: process {entry.job} of {entry.run} belongs to another user", file=sys.stderr)
    cancelled = len(active) - kept
    print(f"cancelled: {cancelled} run{'s' if cancelled != 1 else ''}")
    return FAILED if kept else 0


def watch(labels: Mapping[str, str], runs: Path, *, once: bool = False) -> int:
    """Show the runs' states, until no run is active, or only `once`.

    Args:
        labels: the settings to show, by run name.
        runs: the runs folder.
    """
    view = StatusView(labels, runs)
    view.update()
    # rich's own rule. Without a terminal rich is not imported: that takes as long as everything else.
    on_terminal = sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))
    try:
        if on_terminal and (len(labels) <= FEW or not once):
            from sage.jobs.status_table import show

            show(view, once=once)
        elif once:
            print(view.text())
        else:
            _watch_lines(view)
    except KeyboardInterrupt:  # ends the display only
        pass
    print(view.summary())
    for fault in view.faults:
        print(f"sage status: {fault}", file=sys.stderr)
    return 0


def _print_json(view: "StatusView") -> int:
    """Print the states of all runs as one JSON object."""
    view.update()
    content = {
        "folder": str(view.runs),
        "runs": [
            {"run": name, "settings": view.labels[name], "state": state.word}
            | {key: getattr(state, key) for key in ("job", "step", "metric", "requeued", "why")}
            for name, state in view.states.items()
        ],
        "faults": view.faults,
        "slurm_error": view.queue.error,
    }
    print(json.dumps(content, indent=2))
    return 0


def _watch_lines(view: StatusView) -> None:
    """Without a terminal: print the summary whenever it has changed."""
    printed = ""
    while view.is_active:
        if view.summary() != printed:
            printed = view.summary()
            print(printed, flush=True)
        time.sleep(min(view.queue.seconds, REFRESH))
        view.update()


def known_runs(runs: Path) -> list[str]:
    """The runs in the submission log, and the folders that are runs or that this user may not read."""
    try:
        submitted = set(submissions.read(runs))
    except Unreadable:  # `StatusView` reports it
        submitted = set()
    with os.scandir(runs) as found:
        names = [path.name for path in found if not path.name.startswith(".") and path.is_dir()]
    return sorted(submitted.union(name for name in names if _is_run(runs / name)))


def _is_run(folder: Path) -> bool:
    return os.path.exists(folder / "config.json") or not os.access(folder, os.R_OK | os.X_OK)
