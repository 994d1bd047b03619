"""Tests of the choice of a network interface, and that settings are read as the libraries read them."""

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sage.comm.address import (
    GLOO,
    NCCL,
    Interface,
    check_interfaces,
    choose_interface,
    gloo_takes,
    interface_towards,
    interfaces,
    nccl_takes,
)
from sage.comm.attached import AttachedWire
from sage.comm.process import ProcessWire
from sage.comm.rendezvous import local_places

LO = Interface("lo", ("127.0.0.1", "::1"), up=True)
DOWN = Interface("eth0", ("10.0.0.1",), up=False)
LOCAL_ONLY = Interface("eth1", ("fe80::1%eth1",), up=True)
BARE = Interface("eth3", (), up=True)
UP = Interface("eth2", ("10.0.2.1", "2001:db8::1"), up=True)


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (GLOO, NCCL):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in (GLOO, NCCL):
        os.environ.pop(name, None)


@pytest.fixture
def debian(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name `debian` is this machine's own and resolves to loopback, as after Debian's installer."""
    resolve = socket.getaddrinfo

    def resolved(host: str, *rest: Any, **options: Any) -> Any:
        return resolve("127.0.1.1" if host == "debian" else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


def test_each_address_of_this_machine_determines_its_interface() -> None:
    found = interfaces()
    assert [one.name for one in found] == [name for _, name in socket.if_nameindex()]
    assert any(one.is_loopback and "127.0.0.1" in one.addresses for one in found)
    for interface in found:
        for address in interface.addresses if interface.up else ():
            assert interface_towards(address, 80) == interface


@pytest.mark.usefixtures("debian")
@pytest.mark.parametrize(
    ("host", "there", "chosen"),
    [
        ("127.0.0.1", [LO, UP], LO),
        ("127.0.1.1", [LO, UP], LO),
        ("::1", [LO, UP], LO),
        ("localhost", [LO, UP], LO),
        ("debian", [LO, DOWN, LOCAL_ONLY, UP], UP),
        ("debian", [LO, DOWN], LO),
        ("nobody.invalid", [LO, UP], None),
    ],
)
def test_loopback_is_used_only_for_loopback_hosts(
    host: str, there: list[Interface], chosen: Interface | None
) -> None:
    assert interface_towards(host, 80, there) == chosen


@pytest.mark.usefixtures("unset")
def test_each_library_gets_its_setting_in_its_own_syntax() -> None:
    choose_interface("localhost", 80)
    loopback = next(one.name for one in interfaces() if one.is_loopback)
    assert (os.environ[GLOO], os.environ[NCCL]) == (loopback, f"={loopback}")


@pytest.mark.usefixtures("unset")
def test_settings_of_the_environment_are_kept() -> None:
    os.environ[GLOO] = "ib0,ib1"
    choose_interface("127.0.0.1", 80)
    assert os.environ[GLOO] == "ib0,ib1"


@pytest.mark.usefixtures("unset")
def test_no_interface_is_chosen_for_an_unknown_host() -> None:
    choose_interface("nobody.invalid", 80)
    assert not {GLOO, NCCL} & os.environ.keys()


@pytest.mark.parametrize("setting", ["lo", "=lo", "^lo", "l", "nope"])
def test_gloo_accepts_the_same_settings(setting: str) -> None:
    def taken_by(take: Any) -> bool:
        try:
            take()
        except (RuntimeError, ValueError):
            return False
        return True

    assert taken_by(lambda: gloo_takes(setting, interfaces())) == taken_by(
        lambda: dist.ProcessGroupGloo.create_device(interface=setting)
    )


def named(*names: str) -> list[Interface]:
    """Usable interfaces."""
    return [Interface(name, (f"10.0.{number}.1",), up=True) for number, name in enumerate(names)]


def test_gloo_accepts_a_list_of_exact_names() -> None:
    there = named("lo", "eth0", "eth1")
    assert gloo_takes("eth1,eth0", there) == [there[2], there[1]]
    with pytest.raises(ValueError, match=r"NCCL's syntax.*eth0,eth1; usable interfaces are lo, eth0$"):
        gloo_takes("^lo,docker", there[:2])
    with pytest.raises(ValueError, match="no interface has the name 'eth7'; usable interfaces are lo, eth0$"):
        gloo_takes("eth0,eth7", there[:2])


@pytest.mark.parametrize(
    "setting", ["^lo,docker0", "=eth2", "eth7", "eth2,eth7", "eth2,", "eth0", "eth3", "e\n\x1b[31m"]
)
def test_a_setting_that_gloo_would_abort_on_is_a_one_line_error(setting: str) -> None:
    there = [LO, DOWN, UP, BARE]
    with pytest.raises(ValueError, match=r"^GLOO_SOCKET_IFNAME=.*usable interfaces are lo, eth2$") as caught:
        check_interfaces(nccl=False, environ={GLOO: setting}, among=there)
    assert str(caught.value).isprintable()
    check_interfaces(nccl=False, environ={GLOO: ""}, among=there)
    check_interfaces(nccl=False, environ={GLOO: "eth2,lo"}, among=there)


def test_an_interface_that_is_down_or_has_no_address_is_reported_so() -> None:
    there = [LO, DOWN, UP, BARE]
    for name, fault in (("eth0", "eth0 is down"), ("eth3", "eth3 has no address")):
        with pytest.raises(
            ValueError, match=f"GLOO_SOCKET_IFNAME={name}: {fault}; usable interfaces are lo, eth2"
        ):
            gloo_takes(name, there)
        with pytest.raises(ValueError, match=f"NCCL_SOCKET_IFNAME=={name} selects no .* lo, eth2; {fault}"):
            nccl_takes(f"={name}", there)
    assert nccl_takes("eth", there) == [UP]


def test_nccls_setting_counts_if_nccl_is_used() -> None:
    check_interfaces(nccl=False, environ={NCCL: "nope"}, among=[LO, UP])
    with pytest.raises(ValueError, match="NCCL_SOCKET_IFNAME=nope selects no interface of lo, eth2"):
        check_interfaces(nccl=True, environ={NCCL: "nope"}, among=[LO, UP])


@pytest.mark.usefixtures("unset")
def test_a_wire_reports_a_wrong_interface_with_the_doctors_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GLOO, "^lo,docker0")
    (place,) = local_places(1)
    with pytest.raises(
        ValueError, match=r"^GLOO_SOCKET_IFNAME=\^lo,docker0 has NCCL's syntax, but Gloo expects"
    ):
        ProcessWire(place, device=torch.device("cpu"), timeout=5)


@pytest.mark.usefixtures("unset")
def test_a_mount_reports_a_wrong_interface_with_the_doctors_text(monkeypatch: pytest.MonkeyPatch) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        monkeypatch.setenv(GLOO, "nope7")
        with pytest.raises(
            ValueError,
            match="^GLOO_SOCKET_IFNAME=nope7: no interface has the name 'nope7'; usable interfaces are",
        ):
            AttachedWire(device=torch.device("cpu"), timeout=5)
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("unset")
def test_an_empty_setting_counts_as_unset() -> None:
    os.environ[GLOO] = os.environ[NCCL] = ""
    choose_interface("localhost", 80)
    assert os.environ[GLOO]
    assert os.environ[NCCL]


@pytest.mark.parametrize(
    ("setting", "taken"),
    [
        ("eth", ["eth0", "eth01"]),
        ("=eth0", ["eth0"]),
        ("^lo,docker", ["eth0", "eth01"]),
        ("^=eth0,lo", ["docker0", "eth01"]),
        ("docker,eth01", ["docker0", "eth01"]),
    ],
)
def test_nccl_accepts_prefixes_exact_names_or_exclusions(setting: str, taken: list[str]) -> None:
    there = named("lo", "docker0", "eth0", "eth01")
    assert [one.name for one in nccl_takes(setting, there)] == taken
    with pytest.raises(ValueError, match="selects no interface of ib0"):
        nccl_takes(setting if not setting.startswith("^") else "^ib", named("ib0"))
