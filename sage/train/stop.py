"""Signals that ask a run to stop: at once before it trains, and after the step it is in once it does."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sage.exit_status import KEYBOARD


class Stop:
    """Whether this process has been asked to stop, by SIGTERM, SIGINT, SIGUSR1 or SIGUSR2.

    A second SIGINT ends the process at once, with exit status 130.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._interrupts = 0
        self._leave: Callable[[signal.Signals], None] | None = None

    def listen(self, leave: Callable[[signal.Signals], None]) -> None:
        """Take the signals over, also while the main thread waits in C++, where Python runs no handlers.

        Args:
            leave: Ends the process. It is called by the first signal that comes before `begin()`, in a thread
                of its own, for until then there is nothing to save.
        """
        self._leave = leave
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in self.SIGNALS:
            signal.signal(number, _nothing)  # the thread acts; without a handler the signal would end us
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._read, args=(reader,), name="sage-signals", daemon=True).start()

    def begin(self) -> None:
        """From here on a signal stops the training after the step it is in."""
        self._leave = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over for as long as a run in somebody else's process takes."""
        before = {number: signal.getsignal(number) for number in self.SIGNALS}
        for number in self.SIGNALS:
            signal.signal(number, lambda number, _: self._heard(number))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _read(self, reader: int) -> None:
        while heard := os.read(reader, 64):
            for number in heard:
                if number in self.SIGNALS:
                    self._heard(number)

    def _heard(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            os._exit(KEYBOARD)
        if self._leave is not None:
            self._leave(self.signal)


def _nothing(number: int, frame: object) -> None:
    pass
