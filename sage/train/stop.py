"""Signals that ask a training to stop, after the step it is in."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Whether this process has been asked to stop, by SIGTERM, SIGINT, SIGUSR1 or SIGUSR2."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def listen(self) -> None:
        """Take the signals over. A second SIGINT ends the process as it always did."""
        for number in self.SIGNALS:
            signal.signal(number, self._heard)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over for as long as a run in somebody else's process takes."""
        before = {number: signal.getsignal(number) for number in self.SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, _: object) -> None:
        self.signal = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
