"""The rendezvous of the doctor's agents: plain TCP at rank 0's address and port, before torch is imported.

Messages are lines of JSON. Plain sockets allow an exact error message for each way in which a connection can
fail. Both sides first authenticate by the secret of this check, without sending it
(`sage.cluster.doctor.authentication`). The length of a line is limited, so a connection from any other
program costs a few kilobytes for a few seconds; such connections are counted.
"""

import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from sage.cluster.doctor.authentication import (
    AuthenticationError,
    authenticate_client,
    authenticate_to_server,
    read_line,
    write_line,
)
from sage.comm.address import is_loopback

RETRY_SECONDS = 0.2

RANK_BYTES = 64 * 1024
"""The longest line of a rank in bytes; rank 0's answer may have as many bytes per rank."""

MAX_UNAUTHENTICATED = 64
"""The number of unauthenticated connections at a time, in addition to those of the ranks."""


class Unreachable(OSError):
    """A connection could not be made; the message has the reason."""


def connect(host: str, port: int, seconds: float, *, until_it_listens: bool = False) -> socket.socket:
    """Connect within `seconds`; `until_it_listens`: a refused connection is tried again until then.

    Raises:
        Unreachable: `does not resolve: …`, `refused: …`, `no answer …`, or the system's error.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(0.1, end - time.monotonic()))
        except ConnectionRefusedError as error:
            if not until_it_listens or time.monotonic() + RETRY_SECONDS > end:
                raise Unreachable("refused: no process listens there") from error
            time.sleep(RETRY_SECONDS)
        except TimeoutError as error:
            raise Unreachable(f"no answer in {seconds:g} s: a firewall or a network fault") from error
        except socket.gaierror as error:
            raise Unreachable(f"does not resolve: {error.strerror}") from error
        except OSError as error:
            raise Unreachable(f"not let through: {error.strerror}") from error


class RendezvousServer:
    """The server at rank 0's port: all-gathers the values of W agents, round by round.

    Args:
        hostip: Rank 0's address as given to the ranks; for a loopback address it listens on loopback only.
        port: The port.
        world_size: W.
        seconds: How long to wait at the end until the clients have disconnected.
        secret: The agents' common secret.

    Raises:
        OSError: The port cannot be opened.
    """

    def __init__(self, hostip: str, port: int, world_size: int, seconds: float, secret: str) -> None:
        self._ranks = range(world_size)
        self._expected: set[int | None] = set(self._ranks)
        self._seconds, self._secret = seconds, secret
        self._brought: defaultdict[int, dict[int, Any]] = defaultdict(dict)
        self._closed: set[int] = set()
        self._clients = 0
        self._present: set[int] = set()
        self._changed = threading.Condition()
        self.rejected: list[str] = []
        """Addresses of connections that did not authenticate; the first `MAX_UNAUTHENTICATED` of them."""
        self._listener = open_listener(port, hostip)
        serve(self._listener, self._answer, at_once=MAX_UNAUTHENTICATED + 2 * world_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Close the port, and wait until all clients have disconnected or the time is up."""
        self._listener.close()
        with self._changed:
            self._changed.wait_for(lambda: self._clients == 0, self._seconds)

    def _answer(self, connection: socket.socket) -> None:
        peer = connection.getpeername()[0]
        try:
            rank = authenticate_client(connection, self._secret)
            with self._changed:
                if rank not in self._ranks or rank in self._present:
                    raise AuthenticationError(f"rank {rank} does not exist, or is connected already")
                self._present.add(rank)
                self._clients += 1
        except (OSError, ValueError):
            with self._changed:
                if len(self.rejected) < MAX_UNAUTHENTICATED:
                    self.rejected.append(str(peer))
            return
        try:
            self._serve_client(connection, rank)
        finally:
            with self._changed:
                self._clients -= 1
                self._present.discard(rank)
                self._expected.discard(rank)
                self._changed.notify_all()

    def _serve_client(self, connection: socket.socket, rank: int) -> None:
        connection.settimeout(None)  # a rank may be busy between rounds; if it dies, the connection closes
        with connection.makefile("rb") as lines:
            while line := read_line(lines, RANK_BYTES):
                message = json.loads(line)
                reply = self._collect(rank, message) if "round" in message else time.time()
                write_line(connection, json.dumps(reply))

    def _collect(self, rank: int, message: dict[str, Any]) -> dict[int, Any]:
        number, seconds = int(message["round"]), float(message["seconds"])
        brought = self._brought[number]
        with self._changed:
            brought[rank] = message["brings"]
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: number in self._closed or brought.keys() >= self._expected, min(seconds, 3600.0)
            )
            # A rank that has missed a round is not waited for in later rounds.
            self._expected &= brought.keys()
            self._closed.add(number)
            self._changed.notify_all()
            return dict(brought)


class RendezvousClient:
    """One agent's connection to the rendezvous. `skew`: seconds by which its clock is ahead of rank 0's.

    Raises:
        Unreachable: The connection cannot be made, or another program answers.
    """

    def __init__(
        self, rank: int, hostip: str, port: int, world_size: int, seconds: float, secret: str
    ) -> None:
        self._round, self._seconds = 0, seconds
        self._longest = RANK_BYTES * (world_size + 1)
        self._connection = connect(hostip, port, seconds, until_it_listens=True)
        self._connection.settimeout(seconds)
        try:
            authenticate_to_server(self._connection, secret, rank)
            self._lines = self._connection.makefile("rb")
            self.skew = min((self._compare_clocks() for _ in range(3)), key=lambda found: found[0])[1]
        except (OSError, ValueError, TypeError) as error:
            self._connection.close()
            raise Unreachable("another program answers there, not rank 0") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()
        self._connection.close()

    def gather(self, brings: Any, seconds: float | None = None) -> dict[int, Any]:
        """All-gather: every rank's value of this round, by rank, without ranks that are gone or too late.

        Args:
            brings: This rank's value, in JSON's types.
            seconds: How long to wait for the others.

        Raises:
            Unreachable: Rank 0 does not answer any more.
        """
        seconds = seconds or self._seconds
        self._connection.settimeout(2 * seconds)  # rank 0 waits for the other ranks too
        try:
            found = self._request({"round": self._round, "brings": brings, "seconds": seconds})
            answer = {int(rank): value for rank, value in found.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise Unreachable(f"rank 0 does not answer any more: {error}") from error
        self._round += 1
        return answer

    def _compare_clocks(self) -> tuple[float, float]:
        before = time.time()
        theirs = float(self._request({}))
        after = time.time()
        return after - before, (before + after) / 2 - theirs

    def _request(self, message: dict[str, Any]) -> Any:
        write_line(self._connection, json.dumps(message))
        return json.loads(read_line(self._lines, self._longest))


def open_listener(port: int, hostip: str = "") -> socket.socket:
    """A listening socket on all addresses of this machine, including IPv6 if available.

    If `hostip` is a loopback address, it listens on that address only.
    """
    host = "127.0.0.1" if hostip == "localhost" else hostip
    with suppress(ValueError):  # a host name, or ""
        if is_loopback(host):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def serve(listener: socket.socket, answer: Callable[[socket.socket], None], *, at_once: int) -> None:
    """Handle each connection in its own thread, until the listener is closed or this process ends.

    Args:
        listener: The listening socket.
        answer: Handles a connection.
        at_once: The number of connections at a time; further ones are closed without an answer.
    """
    places = threading.Semaphore(at_once)

    def handle(connection: socket.socket) -> None:
        try:
            # A lost connection or a malformed message concerns this connection only.
            with connection, suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                answer(connection)
        finally:
            places.release()

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # the listener is closed, or no file descriptor is left
                if listener.fileno() < 0:
                    return
                time.sleep(RETRY_SECONDS)
                continue
            if places.acquire(blocking=False):
                threading.Thread(target=handle, args=(connection,), daemon=True).start()
            else:
                connection.close()

    threading.Thread(target=accept, daemon=True).start()
