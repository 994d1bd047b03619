"""A trace of some steps of one rank, in the JSON format of Chrome's trace viewer and Perfetto."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sage.records.manifest import host
from sage.storage import write_text
from sage.timing import Span, Spans


class StepTrace:
    """Traces consecutive steps and writes them to `trace-RANK.json` after the last one, or at the end.

    The first step of the process is not traced: it allocates memory and starts connections.

    Args:
        folder: The run folder.
        rank, device: Rank and device of this process.
        steps: Number of steps to trace; 0: no trace.
    """

    def __init__(self, folder: Path, rank: int, device: torch.device, *, steps: int) -> None:
        self.path = folder / f"trace-{rank:04d}.json"
        self.spans = Spans(device)
        self._rank, self._left, self._is_first = rank, steps, True

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Trace the block as this step, if it is one of those; raises the error of `finish`."""
        if self._left == 0 or self._is_first:
            self._is_first = False
            yield
            return
        self.spans.is_on = True
        try:
            with self.spans.running("step"), self.spans.span(f"step {number}"):
                yield
        finally:
            self.spans.is_on = False
        self._left -= 1
        if self._left == 0:
            self.finish()

    def finish(self) -> None:
        """Write the steps traced so far, unless that has been done.

        Raises:
            sage.storage.NotWritten: (an OSError) The file cannot be written.
        """
        if self.spans.found:
            write_text(self.path, json.dumps(chrome(self.spans.found, self._rank)))
            self.spans.found.clear()


def chrome(spans: list[Span], rank: int) -> dict[str, Any]:
    """Return spans in Chrome's trace event format: a process for the rank, a row for each thread.

    Times are microseconds of the wall clock, so that the files of several ranks can be joined.
    """
    now = time.time() - time.perf_counter()
    rows = {name: number for number, name in enumerate(dict.fromkeys(span.thread for span in spans))}
    names = [("process_name", 0, f"rank {rank}, {host()}")]
    names += [("thread_name", number, name) for name, number in rows.items()]
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": kind, "pid": rank, "tid": number, "args": {"name": name}}
        for kind, number, name in names
    ]
    events += [
        {
            "ph": "X",
            "name": span.name,
            "pid": rank,
            "tid": rows[span.thread],
            "ts": 1e6 * (now + span.start),
            "dur": 1e6 * (span.end - span.start),
        }
        for span in sorted(spans, key=lambda span: (span.start, -span.end))
    ]
    return {"displayTimeUnit": "ms", "traceEvents": events}
