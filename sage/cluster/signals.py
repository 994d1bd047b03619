"""Signals to commands that have started processes: they end in order, so that what they started ends too."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def leaving_in_order() -> Iterator[None]:
    """Have SIGTERM, and SIGHUP unless it is ignored, raise SystemExit with 128 and the signal's number."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, _leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Keep SIGINT and SIGTERM back: no exception may fall between starting a process and noting it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for each in came:
            signal.raise_signal(each)


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)
