"""The listening socket of rank 0, on which the rendezvous store is served."""

import errno
import socket
import time
from contextlib import suppress

from sage.comm.address import is_called_loopback
from sage.comm.rendezvous import Place

LISTEN_SECONDS = 5.0
"""Seconds for which rank 0 tries to bind the port: a run that has just ended may still hold it."""


class PortTaken(RuntimeError):
    """Another process holds the port of the rendezvous."""


def listen(place: Place, timeout: float) -> socket.socket:
    """Open rank 0's listening socket, on `hostip` if that is an address of this node.

    If all ranks are on this machine, `hostip` is a loopback address. If `hostip` is a name, or an address of
    another machine (NAT), the socket listens on all addresses.

    Raises:
        PortTaken: if another process holds the port.
        RuntimeError: if the address cannot be bound for another reason.
    """
    end = time.monotonic() + min(timeout, LISTEN_SECONDS)
    while True:
        try:
            return _bound(place.hostip, place.port)
        except OSError as error:
            if time.monotonic() > end:
                message = f"rank 0 cannot listen on port {place.port}: {error.strerror}"
                if error.errno == errno.EADDRINUSE:
                    cause = "another run, another program or a second process with rank 0 uses the port"
                    raise PortTaken(f"{message}; {cause}") from error
                raise RuntimeError(message) from error
            time.sleep(0.1)


def _bound(host: str, port: int) -> socket.socket:
    if host == "localhost" or host.endswith(".localhost"):
        host = "127.0.0.1"
    with suppress(socket.gaierror):
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
        try:
            return socket.create_server(address, family=family, backlog=2048)
        except OSError:
            # The address is not this node's own, as behind a NAT: listen on all addresses.
            if is_called_loopback(host) or _is_ours(family, address):
                raise
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=2048, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=2048)


def _is_ours(family: int, address: tuple[object, ...]) -> bool:
    with socket.socket(family) as probe, suppress(OSError):
        probe.bind((address[0], 0, *address[2:]))
        return True
    return False
