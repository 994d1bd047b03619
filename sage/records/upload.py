"""Uploads the files of a run in the background while it trains, and for a bounded time at its end."""

import sys
import threading
import time
from pathlib import Path

from sage.exit_status import INTERRUPTED, message
from sage.output.text import clean_text
from sage.output.units import printable
from sage.storage.remote.store import Store, StoreError
from sage.storage.remote.upload import RunUpload
from sage.storage.remote.url import marked_url

FIRST = 2.0
"""Seconds from the start of a run to its first upload."""

PERIOD = 30.0
"""Seconds from the end of one upload to the next, at least."""

SHARE = 10.0
"""The next upload begins after this many times the duration of the last one, if that is more."""

LONGEST = 60.0
"""Seconds up to which the pause is doubled after each failure; the first is 2 s."""

FAILURES = 3
"""Failures in a row after which a run says that it is not uploaded; wrong credentials are said at once."""

AT_END = {0: 60.0, INTERRUPTED: 15.0}
"""Seconds at the end of a run for what is left, by its exit status: SLURM kills a stopped job soon."""

AFTER_FAILURE = 5.0
"""Seconds for this after a failure, which is less than the other ranks have to exit."""


class Upload:
    """The upload of one run folder to the URL of its folder of runs; without a URL, it does nothing.

    A thread of the process of rank 0 uploads; its failures are retried, and never end or slow the run: they
    are said once, on stderr, and `sage sync` uploads the run later.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._url: str | None = None
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._deadline = 0.0
        self._is_complete = self._has_said = False
        self._reason = ""

    def start(self) -> None:
        """Start the thread, on rank 0, while the run folder is locked."""
        self._url = marked_url(self._folder.parent)
        if self._url is not None:
            self._thread = threading.Thread(target=self._work, name="sage-upload", daemon=True)
            self._thread.start()

    def finish(self, status: int) -> None:
        """Upload what is left, as far as the time for this exit status allows, and say whether all is there.

        It raises no exception; if `start` was not called, it does nothing.
        """
        if self._thread is None:
            return
        seconds = AT_END.get(status, AFTER_FAILURE)
        self._deadline = time.monotonic() + seconds
        self._ending.set()
        self._thread.join(seconds)
        if self._is_complete:
            _say(f"uploaded: {self._url}/{self._folder.name}")
        else:
            self._say_once(self._reason or f"not complete after {seconds:g} s")

    def _work(self) -> None:
        assert self._url is not None
        upload = RunUpload(self._folder, self._folder.name)
        store: Store | None = None
        pause, failures, has_worked = FIRST, 0, False
        while True:
            is_last = self._ending.wait(pause)
            started = time.monotonic()
            try:
                store = store or Store(self._url)
                upload(store, verify=is_last, is_stopped=(lambda: False) if is_last else self._ending.is_set)
            except Exception as error:  # whatever it is, the run goes on
                store = None  # which reads the credentials again
                failures += 1
                pause = pause_after(failures)
                self._reason = clean_text(message(error))
                is_permanent = isinstance(error, StoreError) and error.is_permanent
                if is_permanent or failures >= FAILURES:
                    self._say_once(self._reason)
                if is_last:
                    # A store that has never answered is not waited for.
                    is_hopeless = not has_worked and (is_permanent or failures >= 2)
                    if is_hopeless or time.monotonic() + pause > self._deadline:
                        return
                    time.sleep(pause)
            else:
                failures, has_worked, self._reason = 0, True, ""
                if is_last:
                    self._is_complete = True
                    return
                pause = max(PERIOD, SHARE * (time.monotonic() - started))

    def _say_once(self, reason: str) -> None:
        if not self._has_said:
            self._has_said = True
            runs = printable(self._folder.parent)
            _say(f"not uploaded: {reason}; the run is in {runs}, and `sage sync {runs}` uploads it later")


def pause_after(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row."""
    return min(2.0 ** min(failures, 10), LONGEST)


def _say(text: str) -> None:
    print(f"sage: {text}", file=sys.stderr, flush=True)
