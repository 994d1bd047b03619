"""Finds free ports, and reads the kernel's byte counts of this process's TCP connections (Linux)."""

import os
import random
import socket
import struct
import time
from contextlib import ExitStack
from pathlib import Path

# Offsets into struct tcp_info of linux/tcp.h.
UNACKED, BYTES_ACKED, BYTES_RECEIVED, NOTSENT_BYTES = 24, 120, 128, 144


def free_ports(count: int) -> list[str]:
    """Find free loopback ports for a program that is about to start.

    They are below the kernel's range of ephemeral ports, so that the kernel does not assign them to another
    test in the meantime.
    """
    lowest = Path("/proc/sys/net/ipv4/ip_local_port_range")
    end = int(lowest.read_text().split()[0]) if lowest.exists() else 32768
    draw = random.SystemRandom()  # a test may have seeded the default generator
    ports: list[str] = []
    with ExitStack() as held:
        while len(ports) < count:
            listener = held.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", draw.randrange(1024, max(end, 2048))))
            except OSError:  # the port is in use
                continue
            ports.append(str(listener.getsockname()[1]))
    return ports


def tcp_bytes(*, leaving_out: int) -> tuple[int, int]:
    """Return the bytes sent and received, once all are acknowledged, on all connections but one port's."""
    sent = received = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            connection = socket.socket(fileno=os.dup(int(name)))
        except FileNotFoundError:  # the descriptor of the directory listing itself
            continue
        with connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            try:
                ports = connection.getsockname()[1], connection.getpeername()[1]
            except OSError:  # a listening socket
                continue
            if leaving_out not in ports:
                counted = _settled(connection)
                sent, received = sent + counted[0], received + counted[1]
    return sent, received


def _settled(connection: socket.socket) -> tuple[int, int]:
    while True:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        waiting = struct.unpack_from("I", info, UNACKED) + struct.unpack_from("I", info, NOTSENT_BYTES)
        if not any(waiting):
            (sent,), (received,) = (
                struct.unpack_from("Q", info, BYTES_ACKED),
                struct.unpack_from("Q", info, BYTES_RECEIVED),
            )
            return sent, received
        time.sleep(0.001)
