"""Tests that the doctor's ports serve only authenticated ranks, and that reports of agents are validated."""

import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from fuzz import examples
from healthy_node import facts as healthy
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.cluster.doctor import authentication, rendezvous
from sage.cluster.doctor.checks import check_all
from sage.cluster.doctor.findings import Observations
from sage.cluster.doctor.link_checks import measure, serve_measurements
from sage.cluster.doctor.rendezvous import RendezvousClient, RendezvousServer, Unreachable, open_listener
from sage.cluster.doctor.reported_facts import FIRST, STEPS, ReportParser, cleaned, fault

SECRET = "the run's own"


@pytest.fixture
def host() -> Iterator[RendezvousServer]:
    port = free_port()
    host = RendezvousServer("127.0.0.1", port, 2, 0.1, SECRET)
    host.port = port  # type: ignore[attr-defined]
    with host:
        yield host


@pytest.fixture(autouse=True)
def no_thread_raises(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No thread ends with a traceback."""
    result: list[object] = []
    monkeypatch.setattr(threading, "excepthook", result.append)
    yield
    assert not result


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def client(host: RendezvousServer, rank: int, secret: str = SECRET) -> RendezvousClient:
    return RendezvousClient(rank, "127.0.0.1", host.port, 2, 5.0, secret)  # type: ignore[attr-defined]


def until(is_so: Any) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def raw_connection(host: RendezvousServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", host.port), timeout=10)  # type: ignore[attr-defined]


def send_raw(connection: socket.socket, what: bytes) -> None:
    """Send bytes, ignore errors of the other side, and close the connection."""
    with connection, suppress(OSError):
        connection.recv(200)
        connection.sendall(what)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


# The port.


def test_ranks_that_know_the_secret_connect(host: RendezvousServer) -> None:
    with client(host, 0) as first, client(host, 1) as second:
        both = [threading.Thread(target=one.gather, args=("x",)) for one in (first,)]
        both[0].start()
        assert second.gather({"of": "1"}) == {0: "x", 1: {"of": "1"}}
        both[0].join()
        assert abs(first.skew) < 1
    assert host.rejected == []


@pytest.mark.parametrize(
    "what",
    [
        b"",
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + bytes(range(256)),
        b"{}\n",
        b"[" * 400 + b"\n",
        b'{"rank": 0, "nonce": "a", "proof": "b"}\n',
        b'{"rank": 0, "nonce": "a", "proof": "\\ud800"}\n',
        b'{"rank": 1e999, "nonce": "a", "proof": "b"}\n',
        b'{"rank": true, "nonce": [], "proof": null}\n',
        b'{"rank": 0, "round": 0, "brings": 1, "seconds": 1}\n',
        b"\xff\xfe\x00\n",
        b"x" * 100_000,
    ],
)
def test_connections_with_invalid_messages_are_counted_and_get_no_answer(
    host: RendezvousServer, what: bytes
) -> None:
    send_raw(raw_connection(host), what)
    until(lambda: host.rejected)
    assert host.rejected == ["127.0.0.1"]
    with client(host, 0) as alone:
        assert 0 in alone.gather("still here", 0.1)


def test_a_line_without_an_end_uses_no_memory(host: RendezvousServer) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    block = bytes(1024 * 1024).replace(b"\0", b"x")
    with raw_connection(host) as connection, suppress(OSError):
        for _ in range(200):
            connection.sendall(block)
    until(lambda: host.rejected)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024, "KiB"


def test_a_rank_with_another_secret_is_unauthenticated(host: RendezvousServer) -> None:
    with pytest.raises(Unreachable, match="another program answers there, not rank 0"):
        client(host, 0, "guessed")
    until(lambda: host.rejected)


def test_a_connected_or_nonexistent_rank_cannot_connect(host: RendezvousServer) -> None:
    with client(host, 1):
        for rank in (1, 2, -1):
            with pytest.raises(Unreachable):
                client(host, rank)
    until(lambda: len(host.rejected) == 3)


def test_an_unauthenticated_connection_that_waits_is_closed(
    host: RendezvousServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "AUTHENTICATION_SECONDS", 0.2)
    with raw_connection(host) as connection:
        connection.recv(200)
        connection.sendall(b"{")
        assert connection.recv(200) == b""
    until(lambda: host.rejected)


def test_many_other_connections_do_not_block_the_ranks(
    host: RendezvousServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "AUTHENTICATION_SECONDS", 0.5)
    crowd = [raw_connection(host) for _ in range(rendezvous.MAX_UNAUTHENTICATED)]
    with client(host, 0) as alone:
        assert 0 in alone.gather("in", 0.1)
    for connection in crowd:
        connection.close()


def test_a_false_rank_0_learns_and_gets_nothing() -> None:
    heard: list[bytes] = []

    def pretend_to_be_rank_0() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.sendall(b'{"sage": "00"}\n')
            heard.append(connection.recv(4096))
            connection.sendall(b'{"proof": "00"}\n')
            heard.append(connection.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as server:
        posing = threading.Thread(target=pretend_to_be_rank_0)
        posing.start()
        with pytest.raises(Unreachable, match="another program answers"):
            RendezvousClient(0, "127.0.0.1", server.getsockname()[1], 2, 5.0, SECRET)
        posing.join()
    assert SECRET.encode() not in b"".join(heard)
    assert heard[1:] in ([], [b""])


@pytest.mark.parametrize("hostip", ["127.0.0.1", "localhost", "127.0.1.1"])
def test_ranks_of_one_machine_use_loopback_only(hostip: str) -> None:
    with open_listener(0, hostip) as listener:
        assert listener.getsockname()[0].startswith("127.")
    with open_listener(0, "10.0.0.1") as listener:
        assert not listener.getsockname()[0].startswith("127.")


def test_a_link_is_measured_only_for_ranks_that_know_the_secret() -> None:
    port = serve_measurements("127.0.0.1", SECRET)
    found = measure("127.0.0.1", port, SECRET)
    assert found["alpha_seconds"] > 0
    assert measure("127.0.0.1", port, "guessed") == {
        "error": "connection lost: the peer closed the connection"
    }


# Reports of agents.


def parsed_report(*steps: tuple[str, Any]) -> ReportParser:
    """Return a parser that has read these steps, each in one piece."""
    one = ReportParser(range(4))
    for step, found in steps:
        one.add(1, 1, json.dumps({step: found}))
    return one


def beginning() -> list[tuple[str, Any]]:
    return [(step, healthy(0)[step]) for step in FIRST]


def test_the_report_of_a_healthy_agent_is_valid() -> None:
    assert parsed_report(*healthy(0).items()).facts.keys() >= {*FIRST, "pairs", "torch", "all_reduce", "end"}
    assert "garbled" not in parsed_report(*healthy(0).items()).facts


@pytest.mark.parametrize(
    ("step", "found"),
    [
        ("node", {"node": 1, "network": "n", "world_size": 4}),
        ("node", []),
        ("software", {}),
        ("no such step", {}),
        ("end", {}),
        ("clock", {"skew": 0.0}),
    ],
)
def test_an_invalid_first_step_invalidates_the_report(step: str, found: Any) -> None:
    one = parsed_report((step, found), *healthy(0).items())
    assert one.facts.keys() == {"garbled"}


@pytest.mark.parametrize(
    ("step", "found"),
    [
        ("pairs", {"7": {"error": "x"}}),
        ("pairs", {"one": {"error": "x"}}),
        ("pairs", {"1": {"alpha_seconds": -1.0, "bits_per_second": 1.0}}),
        ("pairs", {"1": 5}),
        ("clock", {"skew": "soon"}),
        ("folder", {"path": "/runs"}),
        ("torch", {"gpus": 1}),
        ("all_reduce", {"device": "cpu", "links": 3}),
        ("end", {"strangers": "many"}),
    ],
)
def test_impossible_facts_are_not_evaluated(step: str, found: Any) -> None:
    one = parsed_report(*beginning(), (step, found))
    assert step not in one.facts
    assert step in one.facts["garbled"]["why"]
    (finding,) = [
        one for one in evaluated({0: one.facts}) if one.check == "agent" and "invalid report" in one.found
    ]
    assert finding.status == "failed"


def test_pieces_out_of_order_or_without_end_invalidate_the_report() -> None:
    for pieces in ([(2, 2)], [(1, 3), (3, 3)], [(0, 0)], [(1, 10**6)], [(3, 2)]):
        one = ReportParser(range(4))
        for number, count in pieces:
            one.add(number, count, "{")
        assert one.facts["garbled"]["why"] == "pieces out of order"


def test_strings_of_agents_are_cleaned() -> None:
    found = healthy(0) | {"folder": {"path": "/runs\x1b[2J\n" + "x" * 10_000, "error": "\x1b]0;title\x07no"}}
    facts = parsed_report(*beginning(), ("folder", found["folder"])).facts["folder"]
    assert facts["path"].startswith("/runsxxx") or facts["path"].startswith("/runs x")
    assert len(facts["path"]) == 300
    assert facts["error"] == "no"


def test_any_number_of_unauthenticated_connections_is_one_finding() -> None:
    ranks = {rank: healthy(rank) for rank in range(4)}
    ranks[0]["end"] = {"strangers": ["10.9.9.9"] * 60 + ["10.9.9.8"]}
    (finding,) = [one for one in evaluated(ranks) if one.status != "ok"]
    assert (finding.status, finding.check, finding.where) == ("note", "unauthenticated", "node1")
    assert "61 connections" in finding.found
    assert finding.found.endswith("from 10.9.9.9, 10.9.9.8")


def evaluated(ranks: dict[int, Any]) -> list[Any]:
    return check_all(Observations(ranks, {rank: f"node{rank + 1}" for rank in range(4)}, "node1", 29500))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["127.0.0.1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "addresses", "0", "1", "versions"]) | st.text(max_size=5), inner
        )
    ),
    max_leaves=8,
)


@settings(max_examples=examples(40), deadline=None)
@given(st.data())
def test_any_report_is_evaluated_without_an_exception(data: st.DataObject) -> None:
    """Facts of four healthy agents, some of them with replaced values, go through parser and checks."""
    ranks = {}
    for rank in range(4):
        found = json.loads(json.dumps(healthy(rank)))
        for _ in range(data.draw(st.integers(0, 2))):
            step = data.draw(st.sampled_from([*found, *STEPS]))
            if isinstance(found.get(step), dict) and found[step] and data.draw(st.booleans()):
                found[step][data.draw(st.sampled_from([*found[step]]))] = data.draw(JSON)
            else:
                found[step] = data.draw(JSON)
        facts = parsed_report(*found.items()).facts
        if data.draw(st.booleans()):
            ranks[rank] = facts
    for finding in evaluated(ranks):
        assert finding.found.isprintable(), finding
    for step in STEPS:
        assert isinstance(fault(step, cleaned(data.draw(JSON)), range(4)), str)
