"""Starts a tracker in a process of its own and sends it the figures of a run, without waiting for it.

Figures that the process has not read yet are kept in memory. A tracker that fails, stays behind or does not
close in time is ended: the user gets one line, and the run goes on.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage.output.text import clean_text
from sage.records.flat import flat

if TYPE_CHECKING:  # Code that only reads records must not import torch.
    from torch import Tensor

    from sage.config import Config

MOST_BYTES = 16 * 2**20
"""Figures in memory at which a tracker is given up, in bytes; a step has about 700."""

FINISH_SECONDS = 30.0
"""Seconds that the trackers of a finished run have to close."""

STOP_SECONDS = 5.0
"""The same of a run that was stopped or has failed."""

BINS = 64
"""Bins of a histogram."""

CHECKOUT = Path(__file__).parents[2]


class TrackerProcess:
    """The process of one tracker of one run. No method raises or waits, apart from `end`.

    Args:
        name: The tracker.
        config: The run.
    """

    def __init__(self, name: str, config: "Config") -> None:
        self.name = name
        self._folder = config.folder.absolute() / "trackers" / name
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent = bytearray()
        self._reported = ""
        self._has_closed = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._process = _start(name, self._folder)
        except OSError as error:
            self._give_up(f"cannot be started: {error}")
            return
        values = flat({**config.to_dict(), "hash": config.hash})
        self._send(
            {"start": {"name": config.folder.name, "runs": str(config.runs.absolute()), "config": values}}
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send figures by their tags."""
        self._send({"scalars": values, "step": step})

    def histogram(self, name: str, finite_N: "Tensor", step: int) -> None:
        """Send a histogram of these elements."""
        import numpy

        counts_B, edges = numpy.histogram(finite_N.cpu().numpy(), bins=BINS)
        self._send({"histogram": name, "counts": counts_B.tolist(), "edges": edges.tolist(), "step": step})

    def result(self, result: Mapping[str, Any]) -> None:
        """Send the content of `result.json`."""
        self._send({"result": result})

    def ask_to_close(self) -> None:
        """Let the tracker close, after all figures."""
        self._send({"close": True})

    def end(self, deadline: float, limit: float) -> None:
        """Wait until the process has ended; end it at the deadline, and say so.

        Args:
            deadline: The latest time, by `time.monotonic`.
            limit: The seconds until then, for the message.
        """
        while self._process is not None and self._process.poll() is None:
            if time.monotonic() > deadline:
                self._give_up(f"has not closed within {limit:.0f} s")
                return
            self._push()
            time.sleep(0.01)
        self._listen()
        self._release()

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._process is not None:
            self._unsent += json.dumps(message, default=_plain).encode() + b"\n"
            self._push()

    def _push(self) -> None:
        """Write what the pipe takes."""
        self._listen()
        if self._process is None:
            return
        assert self._process.stdin is not None
        try:
            while self._unsent:
                del self._unsent[: os.write(self._process.stdin.fileno(), self._unsent[: 2**16])]
        except BlockingIOError:
            if len(self._unsent) > MOST_BYTES:
                self._give_up(f"is more than {MOST_BYTES >> 20} MiB of figures behind")
        except BrokenPipeError:
            self._unsent.clear()  # the process is about to end; `_listen` finds out why

    def _listen(self) -> None:
        """Show what the process has reported; give up if it has failed."""
        if self._process is None:
            return
        assert self._process.stdout is not None
        has_ended = False
        try:
            while read := os.read(self._process.stdout.fileno(), 4096):
                self._reported += read.decode(errors="replace")
            has_ended = True
        except BlockingIOError:
            pass
        *lines, self._reported = self._reported.split("\n")
        for line in lines:
            kind, _, text = line.partition(" ")
            if kind == "failed":
                self._give_up(f"has failed: {text}")
                return
            if kind == "note":
                self._say(text)
            self._has_closed |= kind == "closed"
        if has_ended and not self._has_closed:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            status = self._process.poll()
            how = f"by signal {-status}" if status and status < 0 else f"with status {status}"
            self._give_up(f"has ended {how}")

    def _give_up(self, why: str) -> None:
        self._say(f"{why}; the run is not affected. Its output: {self._folder / 'output.log'}")
        self._release()

    def _say(self, text: str) -> None:
        with suppress(OSError, ValueError):  # stderr is closed
            print(clean_text(f"sage: the tracker {self.name} {text}", 2000), file=sys.stderr, flush=True)

    def _release(self) -> None:
        """End the process, and all that it has started, if it has not ended."""
        process, self._process = self._process, None
        self._unsent.clear()
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # it waits for a disk
            process.wait(1)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def trackers_of(config: "Config") -> list[TrackerProcess]:
    """Start the trackers of a run."""
    return [TrackerProcess(name, config) for name in config.track]


def end(trackers: Sequence[TrackerProcess], limit: float) -> None:
    """Let the trackers close side by side, for at most `limit` seconds."""
    deadline = time.monotonic() + limit
    for tracker in trackers:
        tracker.ask_to_close()
    for tracker in trackers:
        tracker.end(deadline, limit)


def _start(name: str, folder: Path) -> subprocess.Popen[bytes]:
    paths = [str(CHECKOUT)] if (CHECKOUT / "pyproject.toml").exists() else []
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    search = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    with (folder / "output.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sage.records.track", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            env={**os.environ, **search, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C ends the run, which then closes its trackers
        )
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
    return process


def _plain(value: object) -> float | str:
    """A number of numpy or torch as float; anything else as text."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(value)
