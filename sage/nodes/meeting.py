"""Where examining agents meet: plain TCP at rank 0's address and port, long before torch is imported.

It speaks lines of JSON, so that whatever is in the way of a connection can be told apart and put into words.
"""

import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

RETRY_SECONDS = 0.2


class Unreachable(OSError):
    """A connection that could not be made; the message says what became of it."""


def reach(host: str, port: int, seconds: float, *, until_it_listens: bool = False) -> socket.socket:
    """Connect, within so many seconds.

    Raises:
        Unreachable: `does not resolve: …`, `refused: …`, `no answer …`, or what the system says.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(0.1, end - time.monotonic()))
        except ConnectionRefusedError as error:
            if not until_it_listens or time.monotonic() + RETRY_SECONDS > end:
                raise Unreachable("refused: nothing listens there") from error
            time.sleep(RETRY_SECONDS)
        except TimeoutError as error:
            raise Unreachable(f"no answer in {seconds:g} s: a firewall drops it, or it is cut off") from error
        except socket.gaierror as error:
            raise Unreachable(f"does not resolve: {error.strerror}") from error
        except OSError as error:
            raise Unreachable(f"not let through: {error.strerror}") from error


class Host:
    """Answers rank 0's port: collects what each of W agents brings to a round, and hands all of it to each.

    Raises:
        OSError: where the port cannot be had.
    """

    def __init__(self, port: int, world_size: int, seconds: float) -> None:
        self._expected: set[int | None] = set(range(world_size))
        self._seconds = seconds
        self._brought: defaultdict[int, dict[int, Any]] = defaultdict(dict)
        self._closed: set[int] = set()
        self._guests = 0
        self._changed = threading.Condition()
        self._listener = listen(port)
        serve(self._listener, self._answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of the port, once all guests have had their answers and gone, or the time is up."""
        self._listener.close()
        with self._changed:
            self._changed.wait_for(lambda: self._guests == 0, self._seconds)

    def _answer(self, door: socket.socket) -> None:
        rank = None
        with self._changed:
            self._guests += 1
        try:
            with door.makefile("rw", encoding="utf-8") as lines:
                for line in lines:
                    message = json.loads(line)
                    rank = message["rank"]
                    reply = self._collect(message) if "round" in message else time.time()
                    print(json.dumps(reply), file=lines, flush=True)
        finally:
            with self._changed:
                self._guests -= 1
                self._expected.discard(rank)
                self._changed.notify_all()

    def _collect(self, message: dict[str, Any]) -> dict[int, Any]:
        number, brought = message["round"], self._brought[message["round"]]
        with self._changed:
            brought[message["rank"]] = message["brings"]
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: number in self._closed or brought.keys() >= self._expected, message["seconds"]
            )
            # Who has missed a round is not waited for again.
            self._expected &= brought.keys()
            self._closed.add(number)
            self._changed.notify_all()
            return dict(brought)


class Guest:
    """One agent's connection to the meeting.

    Args:
        skew: How many seconds this machine's clock is ahead of rank 0's.

    Raises:
        Unreachable: where it cannot be made, or something else answers.
    """

    def __init__(self, rank: int, hostip: str, port: int, seconds: float) -> None:
        self._rank, self._round, self._seconds = rank, 0, seconds
        self._door = reach(hostip, port, seconds, until_it_listens=True)
        self._door.settimeout(seconds)
        self._lines = self._door.makefile("rw", encoding="utf-8")
        try:
            self.skew = min((self._compare_clocks() for _ in range(3)), key=lambda found: found[0])[1]
        except (OSError, ValueError, TypeError) as error:
            raise Unreachable("something else answers there, not rank 0") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()
        self._door.close()

    def gather(self, brings: Any, seconds: float | None = None) -> dict[int, Any]:
        """What every rank brings to this round, by rank; who has gone or does not come in time is left out.

        Raises:
            Unreachable: where rank 0 has gone.
        """
        seconds = seconds or self._seconds
        self._door.settimeout(2 * seconds)  # rank 0 itself waits for the others
        message = {"round": self._round, "rank": self._rank, "brings": brings, "seconds": seconds}
        try:
            found = self._ask(message)
        except (OSError, ValueError) as error:
            raise Unreachable(f"rank 0 answers no longer: {error}") from error
        self._round += 1
        return {int(rank): thing for rank, thing in found.items()}

    def _compare_clocks(self) -> tuple[float, float]:
        before = time.time()
        theirs = float(self._ask({"rank": self._rank}))
        after = time.time()
        return after - before, (before + after) / 2 - theirs

    def _ask(self, message: dict[str, Any]) -> Any:
        print(json.dumps(message), file=self._lines, flush=True)
        return json.loads(self._lines.readline())


def listen(port: int) -> socket.socket:
    """A listener on all of this machine's addresses, IPv6 too where there is IPv6."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def serve(listener: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    """Answer every connection in a thread of its own, until the listener or this process is gone."""

    def attend(door: socket.socket) -> None:
        with door, suppress(OSError, ValueError):  # who breaks off or talks nonsense is left to himself
            answer(door)

    def accept() -> None:
        with suppress(OSError):  # closed
            while True:
                door, _ = listener.accept()
                threading.Thread(target=attend, args=(door,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
