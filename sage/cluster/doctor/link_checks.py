"""Measurement of the link between two ranks: reachability, latency and bandwidth."""

import socket
import struct
import time
from functools import partial
from statistics import median
from typing import Any

from sage.cluster.doctor.authentication import authenticate_client, authenticate_to_server
from sage.cluster.doctor.rendezvous import MAX_UNAUTHENTICATED, Unreachable, connect, open_listener, serve

CONNECT_SECONDS = 5.0

PINGS, SENDS = 15, 2
"""Repetitions of each measurement. The best bandwidth counts, because a busy processor only lowers it."""

# As in the probe, a send must last longer than the burst that a throttled link lets pass.
SEND_SECONDS, SEND_BYTES = 0.15, 64 * 1024 * 1024

BUFFER_BYTES = 256 * 1024
"""Size of the kernel's send buffer: on a slow link, the time to drain it is part of the measurement."""

MANY = 16
"""The largest number of ranks for which every pair is measured."""


def distances(world_size: int) -> list[int]:
    """The distances of the peers that each rank measures, one per round.

    In each round every rank sends to one rank and receives from one, so no two measurements share a link. For
    many ranks, only the distances 1, 2, 4, … are measured.

    >>> distances(4), distances(33)
    ([1, 2, 3], [1, 2, 4, 8, 16, 32])
    """
    if world_size <= MANY:
        return list(range(1, world_size))
    return [2**power for power in range((world_size - 1).bit_length())]


def serve_measurements(hostip: str, secret: str) -> int:
    """Serve measurements of other ranks, which know the secret, until this process ends; returns the port.

    If `hostip`, rank 0's address, is a loopback address, it listens on loopback only.
    """
    listener = open_listener(0, hostip)
    serve(listener, partial(_answer, secret), at_once=MAX_UNAUTHENTICATED)
    return int(listener.getsockname()[1])


def measure(address: str, port: int, secret: str) -> dict[str, Any]:
    """The latency in seconds and the bandwidth in bit/s to a peer, or an `error`."""
    try:
        with _connect(address, port, secret) as connection:
            latency = median(_ping(connection) for _ in range(PINGS))
        rates = []
        for _ in range(SENDS):
            with _connect(address, port, secret) as connection:
                rates.append(_send(connection))
        return {"alpha_seconds": latency, "bits_per_second": max(rates)}
    except Unreachable as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"connection lost: {error}"}
    except ValueError:
        return {"error": "another program answers there, not the rank's agent"}


def _connect(address: str, port: int, secret: str) -> socket.socket:
    connection = connect(address, port, CONNECT_SECONDS)
    try:
        connection.settimeout(CONNECT_SECONDS)
        authenticate_to_server(connection, secret, 0)
    except BaseException:
        connection.close()
        raise
    return connection


def _ping(connection: socket.socket) -> float:
    """Half the round-trip time in seconds."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    start = time.perf_counter()
    connection.sendall(b"p")
    if connection.recv(1) != b"p":
        raise ConnectionResetError("the peer closed the connection")
    return (time.perf_counter() - start) / 2


def _send(connection: socket.socket) -> float:
    """Bandwidth in bit/s, from the first byte sent until the peer confirms the last."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    block = bytes(64 * 1024)
    sent = 0
    start = time.perf_counter()
    connection.sendall(b"s")
    while time.perf_counter() - start < SEND_SECONDS and sent < SEND_BYTES:
        connection.sendall(block)
        sent += len(block)
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(10 * CONNECT_SECONDS)
    (received,) = struct.unpack("!q", connection.recv(8, socket.MSG_WAITALL).ljust(8, b"\0"))
    if received != sent:
        raise ConnectionResetError(f"{received} of {sent} bytes arrived")
    return 8 * sent / (time.perf_counter() - start)


def _answer(secret: str, connection: socket.socket) -> None:
    authenticate_client(connection, secret)
    connection.settimeout(10 * CONNECT_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while request := connection.recv(1):
        if request == b"p":
            connection.sendall(b"p")
            continue
        received = 0
        while block := connection.recv(256 * 1024):
            received += len(block)
        connection.sendall(struct.pack("!q", received))
        return
