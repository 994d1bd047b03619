"""Finds runs that shared a machine with another run of the report; their times are not reliable."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from sage.output.units import number
from sage.report.runs import Run

Interval = tuple[float, float]


def sharing(runs: Sequence[Run]) -> list[int]:
    """Count for each run the other runs that ran on one of its hosts at the same time.

    A run whose start or end is unknown counts as not sharing.
    """
    by_host: dict[str, list[tuple[int, Interval]]] = defaultdict(list)
    for i, run in enumerate(runs):
        if (interval := _interval(run)) is not None:
            for host in _hosts(run):
                by_host[host].append((i, interval))
    counts = [0] * len(runs)
    for members in by_host.values():
        starts = sorted(start for _, (start, _) in members)
        ends = sorted(end for _, (_, end) in members)
        for i, (start, end) in members:
            # Runs that started before its end, minus those that ended by its start, minus the run itself.
            beside = bisect_left(starts, end) - bisect_right(ends, start) - 1
            counts[i] = max(counts[i], beside)
    return counts


def load(run: Run, when: str) -> float | None:
    """The machine's 1-minute load average at the run's `start` or `end`; None if not recorded."""
    load = run.manifest.get("load")
    at = load.get(when) if isinstance(load, dict) else None
    value = at.get("average_1min") if isinstance(at, dict) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def load_text(run: Run) -> str:
    """The load at start and end, and the number of cores, as text."""
    start, end = (number(load(run, when), 3) for when in ("start", "end"))
    cores = run.manifest["machine"]["cores"]
    return f"{start} → {end}" + (f" on {cores} cores" if cores else "")


def _interval(run: Run) -> Interval | None:
    """Start and end of the run's last session, in seconds since 1970; None if unknown."""
    start = _seconds(run.manifest.get("time"))
    load = run.manifest.get("load")
    at_end = load.get("end") if isinstance(load, dict) else None
    end = _seconds(at_end.get("time")) if isinstance(at_end, dict) else None
    if start is None:
        return None
    if end is None:
        # Written by an earlier version. The seconds of a resumed run include all sessions.
        was_resumed = any(event.get("event") == "resumed" for event in run.events)
        seconds = None if was_resumed else run.figures.seconds
        end = None if seconds is None else start + seconds
    return None if end is None or not start < end < float("inf") else (start, end)


def _seconds(time: object) -> float | None:
    try:
        return datetime.fromisoformat(time).timestamp() if isinstance(time, str) else None
    except (ValueError, OverflowError, OSError):
        return None


def _hosts(run: Run) -> set[str]:
    return set(run.manifest.get("hosts") or [run.manifest["machine"]["hostname"]])
