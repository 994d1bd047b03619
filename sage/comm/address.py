"""Lists network interfaces, finds the one with the route to a host, and sets it for Gloo and NCCL.

Gloo binds to the address to which this node's own name resolves, which on Debian is 127.0.1.1. NCCL binds to
the first interface that it accepts. On a node with several interfaces, or with such a name, the ranks may
then fail to connect. Therefore the interface with the route to rank 0 is chosen for both libraries before the
rendezvous.
"""

import array
import fcntl
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sage.output.text import clean_text

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"

SIOCGIFCONF, SIOCGIFFLAGS = 0x8912, 0x8913
IFF_UP = 1


@dataclass(frozen=True)
class Interface:
    """A network interface of this machine, with its addresses."""

    name: str
    addresses: tuple[str, ...]
    """IPv4 addresses before IPv6 addresses; a link-local address ends in `%name`."""
    up: bool

    @property
    def is_loopback(self) -> bool:
        return bool(self.addresses) and all(map(is_loopback, self.addresses))


def interfaces() -> list[Interface]:
    """List this machine's interfaces in the kernel's order; the list is empty on systems other than Linux."""
    if sys.platform != "linux":
        return []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        pairs = [*_ipv4(probe), *_ipv6()]
        return [
            Interface(name, tuple(address for owner, address in pairs if owner == name), _is_up(probe, name))
            for _, name in socket.if_nameindex()
        ]


def resolve(host: str) -> list[str]:
    """Return a host's addresses, in the order in which this machine would try them.

    Raises:
        OSError: if the name does not resolve.
    """
    results = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in results))


def is_loopback(address: str) -> bool:
    """Whether an address (not a name) is a loopback address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def local_address(host: str, port: int) -> str:
    """Return the local address that this machine uses for connections to a host. Sends nothing.

    Raises:
        OSError: if the name does not resolve, or there is no route to the host.
    """
    refusal: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # for a datagram socket this only looks up the route
                # getsockname() alone omits the scope of a link-local address.
                return socket.getnameinfo(probe.getsockname(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[
                    0
                ]
        except OSError as error:
            refusal = error
    raise refusal


def interface_towards(host: str, port: int, among: Sequence[Interface] | None = None) -> Interface | None:
    """Return the interface with the route to a host, or None if it cannot be determined.

    A name that resolves to loopback is this machine's own name, as on Debian (`127.0.1.1 name`). Other nodes
    reach this machine at an address of the interface with the default route, or of the first interface that
    is up. Loopback is chosen only for a host with a loopback name or address (127.0.0.1, ::1, localhost), or
    if there is no other interface.
    """
    among = interfaces() if among is None else among
    try:
        local = local_address(host, port)
    except OSError:
        return None
    if is_loopback(local) and not is_called_loopback(host):
        outward = [interface for interface in among if interface.up and _outward(interface)]
        default = next(filter(None, map(_default_address, ("192.0.2.1", "2001:db8::1"))), None)
        for interface in [*(candidate for candidate in outward if default in candidate.addresses), *outward]:
            return interface
    return next((interface for interface in among if local in interface.addresses), None)


def choose_interface(hostip: str, port: int) -> None:
    """Set Gloo's and NCCL's interface to the one with the route to `hostip`, unless it is set already."""
    interface = interface_towards(hostip, port)
    if interface is not None:
        for name, setting in ((GLOO, interface.name), (NCCL, f"={interface.name}")):
            if not os.environ.get(name):
                os.environ[name] = setting


def check_interfaces(
    *, nccl: bool, environ: Mapping[str, str] = os.environ, among: Sequence[Interface] | None = None
) -> None:
    """Check the interface settings of Gloo, and of NCCL if it is used, before the library itself fails.

    Raises:
        ValueError: one line with the variable, its value and the available interfaces.
    """
    among = interfaces() if among is None else among
    if not among:  # not on Linux: the interfaces are unknown
        return
    if setting := environ.get(GLOO):
        gloo_takes(setting, among)
    if nccl and (setting := environ.get(NCCL)):
        nccl_takes(setting, among)


# How the libraries interpret their settings.


def gloo_takes(setting: str, among: Iterable[Interface]) -> list[Interface]:
    """Return the interfaces that GLOO_SOCKET_IFNAME selects: a comma-separated list of exact names.

    Raises:
        ValueError: if Gloo would fail: the syntax is wrong, or an interface does not exist, is down or has no
            address.
    """
    by_name = {interface.name: interface for interface in among}
    selected = []
    for name in setting.split(","):
        if name.startswith(("^", "=")):
            raise ValueError(
                f"{_shown(GLOO, setting)} has NCCL's syntax, but Gloo expects exact names, as in eth0,eth1; "
                f"usable interfaces are {_usable(by_name.values())}"
            )
        if name not in by_name:
            raise ValueError(
                f"{_shown(GLOO, setting)}: no interface has the name {clean_text(name, 40)!r}; "
                f"usable interfaces are {_usable(by_name.values())}"
            )
        if fault := _fault(by_name[name]):
            raise ValueError(
                f"{_shown(GLOO, setting)}: {name} {fault}; usable interfaces are {_usable(by_name.values())}"
            )
        selected.append(by_name[name])
    return selected


def nccl_takes(setting: str, among: Iterable[Interface]) -> list[Interface]:
    """Return the interfaces that NCCL_SOCKET_IFNAME selects.

    The value is a comma-separated list of prefixes (`eth,ib`), of exact names (`=eth0`), or, after `^`, of
    excluded interfaces (`^lo,docker`). Source: NCCL's documentation of its environment variables. NCCL skips
    interfaces that are down or have no address.

    Raises:
        ValueError: if no interface is left, so that NCCL would fail.
    """
    among = list(among)
    without, exact = setting.startswith("^"), setting.removeprefix("^").startswith("=")
    names = setting.removeprefix("^").removeprefix("=").split(",")

    def is_listed(name: str) -> bool:
        return any(name == pattern if exact else name.startswith(pattern) for pattern in names)

    listed = [interface for interface in among if is_listed(interface.name) != without]
    selected = [interface for interface in listed if not _fault(interface)]
    if not selected:
        faults = "".join(f"; {interface.name} {_fault(interface)}" for interface in listed[:3])
        raise ValueError(f"{_shown(NCCL, setting)} selects no interface of {_usable(among)}{faults}")
    return selected


def _shown(name: str, setting: str) -> str:
    return f"{name}={clean_text(setting, 80)}"


def _fault(interface: Interface) -> str:
    """Return why nothing can be sent through an interface; "" if it is usable."""
    if not interface.up:
        return "is down"
    return "" if interface.addresses else "has no address"


def _usable(among: Iterable[Interface]) -> str:
    return ", ".join(interface.name for interface in among if not _fault(interface)) or "none"


# Queries to the kernel.


def _ipv4(probe: socket.socket) -> Iterable[tuple[str, str]]:
    room = array.array("B", bytes(64 * 1024))
    where, size = room.buffer_info()
    answer = fcntl.ioctl(probe, SIOCGIFCONF, struct.pack("iP", size, where))
    entry = struct.calcsize("16s16s") + (8 if struct.calcsize("P") == 8 else 0)  # struct ifreq
    for start in range(0, struct.unpack_from("i", answer)[0], entry):
        name, address = struct.unpack_from("16s4x4s", room, start)
        # An alias such as eth0:1 is another address of the same interface.
        yield name.rstrip(b"\0").decode().partition(":")[0], socket.inet_ntoa(address)


def _ipv6() -> Iterable[tuple[str, str]]:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        return
    for address, *_, name in map(str.split, lines):
        ip = ipaddress.IPv6Address(int(address, 16))
        yield name, f"{ip}%{name}" if ip.is_link_local else str(ip)


def _is_up(probe: socket.socket, name: str) -> bool:
    answer = fcntl.ioctl(probe, SIOCGIFFLAGS, struct.pack("16s24x", name.encode()))
    return bool(struct.unpack_from("16xH", answer)[0] & IFF_UP)


def _outward(interface: Interface) -> bool:
    return any(not is_loopback(address) and "%" not in address for address in interface.addresses)


def _default_address(beyond: str) -> str | None:
    try:
        return local_address(beyond, 9)
    except OSError:
        return None


def is_called_loopback(host: str) -> bool:
    """Whether a host name or address means loopback on every machine: 127.0.0.1, ::1, localhost."""
    try:
        return is_loopback(host)
    except ValueError:  # a name
        return host == "localhost" or host.endswith(".localhost")
