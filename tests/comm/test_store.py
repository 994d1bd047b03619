"""Tests of the rendezvous: time-outs with a reason, comparison of facts, and rejection of other processes."""

import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from gloo import Group

from sage.comm.agreement import RanksDiffer, differences
from sage.comm.process import ProcessWire
from sage.comm.rendezvous import Place, local_places
from sage.comm.store import join_store
from sage.comm.store_messages import StoreMessages
from sage.comm.transport import WireError
from sage.comm.wire import Wire

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_store_is_left() -> Iterator[None]:
    """A fork that inherits a store's server would abort when freeing it: its thread does not exist."""
    yield
    gc.collect()


@contextmanager
def service(answer: bytes | None, *, hangs_up: bool = False) -> Iterator[int]:
    """A port where each connection gets this answer, is closed, or gets no answer."""
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            kept.append(connection)
            if answer:
                connection.sendall(answer)
            if hangs_up:
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    for connection in kept:
        connection.close()


# Time limits.


def test_a_port_that_another_program_uses_ends_every_rank_within_the_time_out_with_one_line() -> None:
    with ExitStack() as stack:
        ports = {
            "silent": stack.enter_context(service(None)),
            "http": stack.enter_context(service(b"HTTP/1.1 400 Bad Request\r\n\r\n", hangs_up=True)),
            "babble": stack.enter_context(service(b"\xff" * 4096)),
            "closes": stack.enter_context(service(None, hangs_up=True)),
        }
        groups = {
            (name, rank): stack.enter_context(
                Group([replace(local_places(2)[rank], port=port)], lambda _: None, timeout=3)
            )
            for name, port in ports.items()
            for rank in (0, 1)
        }
        start = time.monotonic()
        for (name, rank), group in groups.items():
            ((_, outcome),) = group.outcomes(60)
            assert isinstance(outcome, WireError), (name, outcome)
            assert str(outcome).startswith(
                f"rank {rank} of 2 could not join the other ranks at 127.0.0.1:{ports[name]}"
            )
            assert "\n" not in str(outcome)
            assert ("cannot listen on port" in str(outcome)) == (rank == 0)
        assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("hostip", "reason"),
    [
        ("127.0.0.1", "rank 0 of 2 did not join: no process listens at this address"),
        ("no-such-host.invalid", "the name no-such-host.invalid does not resolve"),
    ],
)
def test_the_error_for_an_unreachable_rendezvous_has_the_reason(hostip: str, reason: str) -> None:
    place = replace(local_places(2)[1], hostip=hostip)
    with pytest.raises(RuntimeError, match=reason):
        join_store(place, timeout=1, facts={})


def test_a_host_that_drops_packets_is_reported_within_the_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        for _ in range(3):  # with a full queue the kernel drops further connections
            guest = stack.enter_context(socket.socket())
            guest.setblocking(False)
            guest.connect_ex(full.getsockname())
        time.sleep(0.1)
        place = replace(local_places(2)[1], port=full.getsockname()[1])
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="no answer: the host is down, or a firewall drops"):
            join_store(place, timeout=2, facts={})
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("timeout", [1e300, float("inf"), float("nan"), 0.0, -1.0])
def test_a_time_out_beyond_the_range_of_the_libraries_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match=r"timeout is .* s; allowed is more than 0 and at most 2,000,000 s"):
        ProcessWire(local_places(1)[0], device=CPU, timeout=timeout)


# Comparison of the ranks.


def outcomes(places: list[Place], facts: list[dict[str, str]], *, timeout: float = 10) -> dict[int, object]:
    """The result of `join_store` on each rank, each in its own thread."""
    found: dict[int, object] = {}

    def run(place: Place) -> None:
        try:
            found[place.rank] = join_store(place, timeout=timeout, facts=facts[place.rank])
        except (RuntimeError, ValueError) as error:
            found[place.rank] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_ranks_that_differ_all_raise_the_same_line_with_every_value() -> None:
    facts = [{"lr": "0.1", "seed": "0"}, {"lr": "0.2", "seed": "0"}, {"lr": "0.1", "seed": "3"}]
    found = outcomes(local_places(3), facts)
    assert {type(error) for error in found.values()} == {RanksDiffer}
    assert len({str(error) for error in found.values()}) == 1
    assert "lr is 0.1 on ranks 0, 2 and 0.2 on rank 1; seed is 0 on ranks 0, 1 and 3 on rank 2" in str(
        found[1]
    )


def test_another_number_of_ranks_is_reported_without_waiting_for_missing_ranks() -> None:
    places = local_places(3)
    start = time.monotonic()
    found = outcomes([replace(places[0], world_size=2), *places[1:]], [{}] * 3, timeout=60)
    assert time.monotonic() - start < 30
    assert all(isinstance(error, RanksDiffer) for error in found.values())
    assert "world_size is 2 on rank 0 and 3 on rank" in str(found[1])


def test_ranks_that_agree_share_their_store_messages() -> None:
    found = outcomes(local_places(2), [{"lr": "0.1"}] * 2)
    first, second = found[0], found[1]
    assert isinstance(first, StoreMessages)
    assert isinstance(second, StoreMessages)
    first.post("a", "b")
    end = time.monotonic() + 60  # the store does not confirm a message
    while (text := second.read("a")) is None and time.monotonic() < end:
        time.sleep(0.01)
    assert text == "b"


def test_after_a_restart_the_ranks_connect_again_through_the_launchers_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_PORT", str(agent.port))
    places = [replace(place, port=agent.port, secret="") for place in local_places(2)]
    for attempt in range(3):
        found = outcomes([replace(place, attempt=attempt) for place in places], [{}] * 2)
        assert all(isinstance(messages, StoreMessages) for messages in found.values()), found
    again = outcomes(places[1:], [{}] * 2)
    assert "another process already has rank 1" in str(again[1])


def test_rank_0_of_another_run_at_the_port_does_not_count_as_a_second_rank_0() -> None:
    first, _ = local_places(2)
    found: dict[int, object] = {}
    thread = threading.Thread(target=lambda: found.update(outcomes([first], [{}], timeout=8)))
    thread.start()
    while True:
        try:
            socket.create_connection((first.hostip, first.port)).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    with pytest.raises(RuntimeError, match="another run, another program or a second process with rank 0"):
        join_store(replace(first, secret="another run's"), timeout=1, facts={})
    thread.join()
    assert str(found[0]) == "rank 1 of 2 did not join"


def test_facts_in_a_message_are_cleaned_and_cut() -> None:
    result = differences({0: {"lr": "\x1b[31m0.1\nforged line"}, 1: {"lr": "7" * 10_000}})
    assert "\x1b" not in result
    assert "\n" not in result
    assert len(result) < 300
    many = [{f"option {number}": str(rank) for number in range(50)} for rank in range(2)]
    assert "44 more differ" in differences(dict(enumerate(many)))


# Other processes.


def test_the_store_of_ranks_on_one_machine_listens_only_on_loopback() -> None:
    def work(wire: Wire) -> list[str]:
        with open("/proc/net/tcp") as table, open("/proc/net/tcp6") as table6:
            rows = [line.split() for line in (*table, *table6)][1:]
        return [
            row[1].partition(":")[0]
            for row in rows
            if len(row) > 3 and row[3] == "0A" and row[1].endswith(port)
        ]

    places = local_places(2)
    port = f":{places[0].port:04X}"
    with Group(places, work) as group:
        for _, listening in group.outcomes():
            assert listening == ["0100007F"]


def test_a_process_without_the_secret_learns_nothing_from_the_keys_and_is_not_trusted() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    messages = StoreMessages(store, secret="a secret").within("attempt 0")
    messages.post("facts 1", "ours")
    messages.count("seat 1")
    keys = store.list_keys()
    assert not any(word in key for key in keys for word in ("facts", "seat", "attempt", "alarm", "secret"))
    assert messages.read("facts 1") == "ours"
    store.set(messages.key("facts 1"), "forged")
    assert messages.read("facts 1") is None, "a value that was written over is believed"
    messages.post("facts 2", "ours")
    store.set(messages.key("verdict"), store.get(messages.key("facts 2")).decode())
    assert messages.read("verdict") is None, "a value that was copied from another key is believed"
    stranger = StoreMessages(store, secret="another").within("attempt 0")
    assert not stranger.has("facts 1")
    assert messages.post_first("verdict", "ours") == "ours"


def test_ranks_with_another_secret_do_not_connect() -> None:
    places = local_places(2)
    found = outcomes([places[0], replace(places[1], secret="another")], [{}] * 2, timeout=6)
    assert "rank 1 of 2 did not join" in str(found[0])
    assert "different values of SAGE_SECRET" in str(found[1])


@pytest.mark.parametrize(
    "forged",
    ["", "{", "[]", "5", '{"fault": 3}', '{"fault": "", "kind": "", "world_size": "x"}', "[" * 100_000],
)
def test_an_invalid_verdict_is_refused(forged: str) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = Place(rank=1, world_size=2, hostip="127.0.0.1", port=store.port)
    StoreMessages(store).within("attempt 0").post("verdict", forged)
    with pytest.raises(RuntimeError, match="verdict of rank 0 in the store is invalid"):
        join_store(place, timeout=5, facts={})


def test_invalid_facts_end_the_rendezvous_with_one_line() -> None:
    places = [replace(place, secret="") for place in local_places(2)]
    found: dict[int, object] = {}
    thread = threading.Thread(target=lambda: found.update(outcomes(places[:1], [{}])))
    thread.start()
    deadline = time.monotonic() + 20
    store = None
    while store is None and time.monotonic() < deadline:
        try:
            store = dist.TCPStore("127.0.0.1", places[0].port, is_master=False, wait_for_workers=False)
        except RuntimeError:
            time.sleep(0.05)
    assert store is not None
    messages = StoreMessages(store).within("attempt 0")
    messages.post("facts 1", "\x1b[2Jgarbage")
    messages.count("arrivals")
    messages.count("read")
    thread.join()
    assert isinstance(found[0], RanksDiffer)
    assert "\x1b" not in str(found[0])
