"""The process of one tracker: `python -m sage.records.track NAME FOLDER`, with a run's figures on stdin.

Each line of stdin is a JSON object. The first has `start`; the last has `close`, unless the run was killed.
What the tracker's packages print goes to stderr. Stdout has lines for the run: `note TEXT`, `failed TEXT` and
`closed`.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from sage import storage
from sage.output.text import clean_text
from sage.records.tracking import Start, Tracker, load

CLOSE_SECONDS = 30
"""Seconds that the tracker has to close, also if the run was killed; then the process ends itself."""

NICE = 10
"""Added to the niceness of the run's processes, because training comes first."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""A scheduler may send them to all processes of a job; the run decides when its trackers close."""


def main() -> int:
    """Follow the run; return 0 if the tracker has taken everything."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    os.nice(NICE)

    def say(kind: str, text: str) -> None:
        with suppress(OSError):  # the run has ended
            report.write(f"{kind} {clean_text(text)}\n")

    try:
        follow(load(name).TRACKER, folder, sys.stdin.buffer, lambda text: say("note", text))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        say("failed", f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        return 1
    say("closed", "")
    return 0


def follow(
    make: Callable[[Start], Tracker], folder: Path, lines: Iterable[bytes], note: Callable[[str], None]
) -> None:
    """Make a tracker and hand it the messages of these lines, up to `close` or the last complete line.

    Args:
        make: The tracker's class.
        folder: The tracker's own folder; its file `id` has the tracker's name of this run.
        lines: The messages.
        note: Shows a line to the user.
    """
    messages = map(json.loads, lines)
    start = next(messages)["start"]
    known = folder / "id"
    tracker = make(
        Start(
            name=start["name"],
            runs=Path(start["runs"]),
            folder=folder,
            config=start["config"],
            earlier=storage.read_text(known).strip() if known.exists() else None,
            note=note,
        )
    )
    storage.write_text(known, tracker.id + "\n")
    is_finished = False
    with suppress(json.JSONDecodeError):  # the last line of a run that was killed
        for message in messages:
            match message:
                case {"scalars": values, "step": step}:
                    tracker.scalars(values, step)
                case {"histogram": name, "counts": counts, "edges": edges, "step": step}:
                    tracker.histogram(name, counts, edges, step)
                case {"result": result}:
                    tracker.result(result)
                    is_finished = True
                case _:
                    break
    signal.alarm(CLOSE_SECONDS)
    tracker.close(is_finished=is_finished)


if __name__ == "__main__":
    sys.exit(main())
