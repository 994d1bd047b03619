"""What lies between two nodes: whether one reaches the other, how fast, and how much at once."""

import socket
import struct
import time
from functools import partial
from statistics import median
from typing import Any

from sage.cluster.doctor.authentication import admit, prove
from sage.cluster.doctor.rendezvous import WAITING, Unreachable, listen, reach, serve

CONNECT_SECONDS = 5.0

PINGS, SENDS = 15, 2
"""How often each is tried. Of the latter the best counts: a busy processor makes no link faster."""

# As in the probe, a call must outlast the burst that a throttled link lets pass.
SEND_SECONDS, SEND_BYTES = 0.15, 64 * 1024 * 1024

BUFFER_BYTES = 256 * 1024
"""What the kernel may hold back of what is sent: on a slow link this is the end that is waited for."""

MANY = 16
"""Above so many ranks not every pair is measured."""


def distances(world_size: int) -> list[int]:
    """How far on, among the ranks, those are whom each rank measures, one after the other.

    In each round every rank sends to one and receives from one, so no link has to be shared. Many ranks
    measure only the distances 1, 2, 4, ….

    >>> distances(4), distances(33)
    ([1, 2, 3], [1, 2, 4, 8, 16, 32])
    """
    if world_size <= MANY:
        return list(range(1, world_size))
    return [2**power for power in range((world_size - 1).bit_length())]


def answer_peers(hostip: str, secret: str) -> int:
    """Let others who know the secret measure the way to this process, as long as it lives; returns the port.

    Where `hostip`, rank 0's address, is one of loopback, all of them are on this machine.
    """
    listener = listen(0, hostip)
    serve(listener, partial(_answer, secret), at_once=WAITING)
    return int(listener.getsockname()[1])


def measure(address: str, port: int, secret: str) -> dict[str, Any]:
    """One message's latency and the bandwidth to a peer; or what is in the way, as `error`."""
    try:
        with _reach(address, port, secret) as door:
            latency = median(_ping(door) for _ in range(PINGS))
        rates = []
        for _ in range(SENDS):
            with _reach(address, port, secret) as door:
                rates.append(_send(door))
        return {"alpha_seconds": latency, "bits_per_second": max(rates)}
    except Unreachable as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"breaks off: {error}"}
    except ValueError:
        return {"error": "something else answers there, not its agent"}


def _reach(address: str, port: int, secret: str) -> socket.socket:
    door = reach(address, port, CONNECT_SECONDS)
    try:
        door.settimeout(CONNECT_SECONDS)
        prove(door, secret, 0)
    except BaseException:
        door.close()
        raise
    return door


def _ping(door: socket.socket) -> float:
    """Half the time there and back."""
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    start = time.perf_counter()
    door.sendall(b"p")
    if door.recv(1) != b"p":
        raise ConnectionResetError("the peer hung up")
    return (time.perf_counter() - start) / 2


def _send(door: socket.socket) -> float:
    """Bits a second, from the first byte sent to the peer's word that it has the last."""
    door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    block = bytes(64 * 1024)
    sent = 0
    start = time.perf_counter()
    door.sendall(b"s")
    while time.perf_counter() - start < SEND_SECONDS and sent < SEND_BYTES:
        door.sendall(block)
        sent += len(block)
    door.shutdown(socket.SHUT_WR)
    door.settimeout(10 * CONNECT_SECONDS)
    (received,) = struct.unpack("!q", door.recv(8, socket.MSG_WAITALL).ljust(8, b"\0"))
    if received != sent:
        raise ConnectionResetError(f"{received} of {sent} bytes came through")
    return 8 * sent / (time.perf_counter() - start)


def _answer(secret: str, door: socket.socket) -> None:
    admit(door, secret)
    door.settimeout(10 * CONNECT_SECONDS)
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while asked := door.recv(1):
        if asked == b"p":
            door.sendall(b"p")
            continue
        received = 0
        while block := door.recv(256 * 1024):
            received += len(block)
        door.sendall(struct.pack("!q", received))
        return
