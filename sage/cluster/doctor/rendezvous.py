"""Where examining agents meet: plain TCP at rank 0's address and port, long before torch is imported.

It speaks lines of JSON, so that whatever is in the way of a connection can be told apart and put into words.
Both ends first prove that they know the secret of this examination, without sending it
(`sage.cluster.doctor.authentication`). The length of a line is bounded. So a stranger who connects costs a
few kilobytes for a few seconds, and is counted.
"""

import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from sage.cluster.doctor.authentication import Stranger, admit, prove, read_line, write_line
from sage.comm.address import is_loopback

RETRY_SECONDS = 0.2

RANK_BYTES = 64 * 1024
"""The longest line that one rank may send; rank 0's answer may be as long for each rank."""

WAITING = 64
"""Connections that may be under way without having proved themselves, beside one for each rank."""


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

    Args:
        hostip: Rank 0's address as the ranks were told it: one of loopback is listened to on loopback alone.
        secret: What the agents know and strangers do not.
        seconds: How long a guest may take to go, at the end.

    Raises:
        OSError: where the port cannot be had.
    """

    def __init__(self, hostip: str, port: int, world_size: int, seconds: float, secret: str) -> None:
        self._ranks = range(world_size)
        self._expected: set[int | None] = set(self._ranks)
        self._seconds, self._secret = seconds, secret
        self._brought: defaultdict[int, dict[int, Any]] = defaultdict(dict)
        self._closed: set[int] = set()
        self._guests = 0
        self._present: set[int] = set()
        self._changed = threading.Condition()
        self.strangers: list[str] = []
        """The addresses of those who connected and did not prove themselves; the first `WAITING` of them."""
        self._listener = listen(port, hostip)
        serve(self._listener, self._answer, at_once=WAITING + 2 * world_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of the port, once all guests have had their answers and gone, or the time is up."""
        self._listener.close()
        with self._changed:
            self._changed.wait_for(lambda: self._guests == 0, self._seconds)

    def _answer(self, door: socket.socket) -> None:
        peer = door.getpeername()[0]
        try:
            rank = admit(door, self._secret)
            with self._changed:
                if rank not in self._ranks or rank in self._present:
                    raise Stranger(f"there is no rank {rank}, or it is here already")
                self._present.add(rank)
                self._guests += 1
        except (OSError, ValueError):
            with self._changed:
                if len(self.strangers) < WAITING:
                    self.strangers.append(str(peer))
            return
        try:
            self._serve_guest(door, rank)
        finally:
            with self._changed:
                self._guests -= 1
                self._present.discard(rank)
                self._expected.discard(rank)
                self._changed.notify_all()

    def _serve_guest(self, door: socket.socket, rank: int) -> None:
        door.settimeout(None)  # a rank may be busy between two rounds; its connection ends with it
        with door.makefile("rb") as lines:
            while line := read_line(lines, RANK_BYTES):
                message = json.loads(line)
                reply = self._collect(rank, message) if "round" in message else time.time()
                write_line(door, json.dumps(reply))

    def _collect(self, rank: int, message: dict[str, Any]) -> dict[int, Any]:
        number, seconds = int(message["round"]), float(message["seconds"])
        brought = self._brought[number]
        with self._changed:
            brought[rank] = message["brings"]
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: number in self._closed or brought.keys() >= self._expected, min(seconds, 3600.0)
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

    def __init__(
        self, rank: int, hostip: str, port: int, world_size: int, seconds: float, secret: str
    ) -> None:
        self._round, self._seconds = 0, seconds
        self._longest = RANK_BYTES * (world_size + 1)
        self._door = reach(hostip, port, seconds, until_it_listens=True)
        self._door.settimeout(seconds)
        try:
            prove(self._door, secret, rank)
            self._lines = self._door.makefile("rb")
            self.skew = min((self._compare_clocks() for _ in range(3)), key=lambda found: found[0])[1]
        except (OSError, ValueError, TypeError) as error:
            self._door.close()
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
        try:
            found = self._ask({"round": self._round, "brings": brings, "seconds": seconds})
            answer = {int(rank): thing for rank, thing in found.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise Unreachable(f"rank 0 answers no longer: {error}") from error
        self._round += 1
        return answer

    def _compare_clocks(self) -> tuple[float, float]:
        before = time.time()
        theirs = float(self._ask({}))
        after = time.time()
        return after - before, (before + after) / 2 - theirs

    def _ask(self, message: dict[str, Any]) -> Any:
        write_line(self._door, json.dumps(message))
        return json.loads(read_line(self._lines, self._longest))


def listen(port: int, hostip: str = "") -> socket.socket:
    """A listener on all of this machine's addresses, IPv6 too where there is IPv6.

    Where `hostip` is one of loopback, on that alone: nobody else needs to get there.
    """
    host = "127.0.0.1" if hostip == "localhost" else hostip
    with suppress(ValueError):  # a name, or nothing
        if is_loopback(host):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def serve(listener: socket.socket, answer: Callable[[socket.socket], None], *, at_once: int) -> None:
    """Answer every connection in a thread of its own, until the listener or this process is gone.

    Args:
        at_once: How many connections may be there at the same time; one more is closed unanswered.
    """
    places = threading.Semaphore(at_once)

    def attend(door: socket.socket) -> None:
        try:
            # Who breaks off or talks nonsense is left to himself.
            with door, suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                answer(door)
        finally:
            places.release()

    def accept() -> None:
        while True:
            try:
                door, _ = listener.accept()
            except OSError:  # closed, or no file descriptor is left for another one
                if listener.fileno() < 0:
                    return
                time.sleep(RETRY_SECONDS)
                continue
            if places.acquire(blocking=False):
                threading.Thread(target=attend, args=(door,), daemon=True).start()
            else:
                door.close()

    threading.Thread(target=accept, daemon=True).start()
