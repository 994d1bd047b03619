"""Handles stop signals: a run ends at once before training, and after the current step during training."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sage.exit_status import KEYBOARD


class Stop:
    """Records whether this process has received SIGTERM, SIGINT, SIGUSR1 or SIGUSR2.

    A second SIGINT ends the process at once, with exit status 130.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._interrupts = 0
        self._leave: Callable[[signal.Signals], None] | None = None

    def handle_in_thread(self, leave: Callable[[signal.Signals], None]) -> None:
        """Handle the signals in a separate thread, also while the main thread waits in C++ code.

        Python runs no signal handlers while the main thread waits in C++.

        Args:
            leave: Ends the process. The thread calls it for a signal that arrives before `begin()`, because
                there is nothing to save until then.
        """
        self._leave = leave
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in self.SIGNALS:
            signal.signal(
                number, _nothing
            )  # the thread handles it; without a handler the signal would end the process
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._read, args=(reader,), name="sage-signals", daemon=True).start()

    def begin(self) -> None:
        """Switch to training: from here on a signal stops the run after the current step."""
        self._leave = None

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Handle the signals within the context, for a run inside another program; then restore handlers."""
        before = {number: signal.getsignal(number) for number in self.SIGNALS}
        for number in self.SIGNALS:
            signal.signal(number, lambda number, _: self._on_signal(number))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _read(self, reader: int) -> None:
        while received := os.read(reader, 64):
            for number in received:
                if number in self.SIGNALS:
                    self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            os._exit(KEYBOARD)
        if self._leave is not None:
            self._leave(self.signal)


def _nothing(number: int, frame: object) -> None:
    pass
