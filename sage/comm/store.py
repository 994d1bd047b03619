"""Where the ranks of a run meet: rank 0's store, how it is reached in time, and what is compared there.

Every wait here ends by the time-out, also where another program holds the port and never answers. Each rank
leaves its facts (settings, versions, checksums) under a key of its own; rank 0 reads them once all have come
and leaves its verdict, which every rank reads: go on, or end with the difference.
"""

import errno
import hashlib
import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from sage.comm.address import is_called_loopback
from sage.comm.agreement import Facts, RanksDiffer, differences, refusal, told_ranks
from sage.comm.rendezvous import Place
from sage.comm.store_messages import Board
from sage.output.text import clean_text

SLICE = 0.25
"""Seconds of one wait in the store: between two of them Python hears signals."""
FAREWELL = 5.0
"""Seconds that rank 0 keeps the store after a refusal, so that the others can read it."""
LISTEN_SECONDS = 5.0
"""Seconds for which rank 0 tries to get the port: a run that has just ended may still hold it."""
NAME_SECONDS = 10.0
"""Seconds for which a name that does not resolve is tried again: a node's may be registered late."""
CLAIMED_SECONDS = 10.0
"""Seconds for which missing ranks are waited for once two processes have claimed the same rank."""
GAVE_UP = "gave up"
"""The fact of a rank that has waited for its whole time-out and has left."""


def sign_in(place: Place, *, timeout: float, facts: Facts) -> Board:
    """Meet the other ranks, compare facts, and return the board of this run.

    Args:
        place: Which rank this is, and where the ranks meet.
        timeout: Seconds until all ranks must have come.
        facts: What must be the same on all ranks, by name.

    Raises:
        RanksDiffer: on every rank, where facts differ.
        RuntimeError: where the port is out of reach or held by another program, or a rank did not come.
    """
    end = time.monotonic() + timeout
    facts = {"world_size": str(place.world_size), **facts}
    hosts = place.rank == 0 and not _agent_keeps_the_store(place)
    store = _open_store(place, end, listener=_listen(place, timeout) if hosts else None)
    board = Board(store, secret=place.secret).within(f"attempt {place.attempt}")
    if board.count(f"seat {place.rank}") > 1:
        board.post_first("claimed twice", str(place.rank))
        board.count("arrivals")
        raise RuntimeError(f"another process is rank {place.rank} already")
    board.post(f"facts {place.rank}", json.dumps(facts))
    board.count("arrivals")
    if place.rank == 0:
        verdict = _preside(board, place.world_size, end)
        board.post("verdict", json.dumps(verdict))
        if verdict["fault"] and hosts:
            _until_read(board, place.world_size)
    else:
        verdict = _await_verdict(board, place, end)
        board.count("read")
    if not verdict["fault"] and place.rank >= int(verdict["world_size"]):
        told = differences({0: {"world_size": verdict["world_size"]}, place.rank: facts})
        raise RanksDiffer(refusal(told))
    if verdict["fault"]:
        raise (RanksDiffer if verdict["kind"] == "differ" else RuntimeError)(
            clean_text(verdict["fault"], 1500)
        )
    # From here on the keys also depend on what has been agreed.
    return board.within(hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16])


# Rank 0's verdict.


def _preside(board: Board, world_size: int, end: float) -> dict[str, str]:
    """Wait for every rank's facts, and judge them."""
    facts: dict[int, Facts] = {}
    arrived, twice = -1, None
    while len(facts) < world_size:
        now = board.count("arrivals", 0)
        if now != arrived:
            arrived = now
            for rank in set(range(world_size)) - facts.keys():
                if (text := board.read(f"facts {rank}")) is not None:
                    facts[rank] = _parsed(text)
            # Ranks of another number of ranks would be waited for in vain.
            if len({each.get("world_size") for each in facts.values()}) > 1:
                break
            if twice is None and (twice := board.read("claimed twice")) is not None:
                end = min(end, time.monotonic() + CLAIMED_SECONDS)
        elif time.monotonic() > end:
            absent = sorted(set(range(world_size)) - facts.keys())
            fault = f"{told_ranks(absent)} of {world_size} did not come"
            if twice is not None:
                fault += f", and two processes are rank {twice}: give each process a rank of its own"
            if told := differences(facts):
                fault += f", and of those that came {told}"
            return {"fault": fault, "kind": "absent", "world_size": str(world_size)}
        else:
            time.sleep(0.02)
    for rank, each in facts.items():  # a rank that gave up has written its facts anew
        if GAVE_UP in _parsed(board.read(f"facts {rank}") or "{}"):
            fault = f"rank {rank} came and has left again: {each.get(GAVE_UP, 'it waited for its time-out')}"
            return {"fault": fault, "kind": "absent", "world_size": str(world_size)}
    told = differences(facts)
    return {"fault": refusal(told) if told else "", "kind": "differ", "world_size": str(world_size)}


def _await_verdict(board: Board, place: Place, end: float) -> dict[str, str]:
    # Rank 0 may have come later, and reaches its own time-out after ours.
    while not board.await_one("verdict", SLICE):
        if time.monotonic() > end:
            here = [rank for rank in range(place.world_size) if board.has(f"facts {rank}")]
            absent = sorted(set(range(place.world_size)) - set(here))
            board.post(f"facts {place.rank}", json.dumps({GAVE_UP: "its time-out is over"}))
            if 0 in absent:
                raise RuntimeError(
                    f"rank 0 of {place.world_size} did not come: another program or another run holds the "
                    "port, or the ranks have different values of SAGE_SECRET"
                )
            raise RuntimeError(f"{told_ranks(absent or [0])} of {place.world_size} did not come")
    verdict = _parsed(board.read("verdict") or "{}")
    if not verdict.keys() >= {"fault", "kind", "world_size"} or not verdict["world_size"].isdigit():
        raise RuntimeError(
            "what rank 0 has left in the store is not its verdict: another program wrote there"
        )
    return verdict


def _until_read(board: Board, world_size: int) -> None:
    """Keep the store until the others have read the verdict, for a few seconds at most."""
    end = time.monotonic() + FAREWELL
    with suppress(RuntimeError):
        while board.count("read", 0) < world_size - 1 and time.monotonic() < end:
            time.sleep(0.05)


def _parsed(text: str) -> dict[str, str]:
    """A rank's facts. What is no object of texts is the fact that it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return {"facts": "unreadable"}
    return {str(name): str(value) for name, value in found.items()}


# The store.


def _agent_keeps_the_store(place: Place) -> bool:
    """Whether torchrun's agent keeps the store, as it does but for a static rendezvous over several nodes."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return kept and os.environ.get("MASTER_PORT") == str(place.port)


def _listen(place: Place, timeout: float) -> socket.socket:
    """Rank 0's listening socket: on loopback where all ranks are here, on one address where it is ours."""
    end = time.monotonic() + min(timeout, LISTEN_SECONDS)
    while True:
        try:
            return _bound(place.hostip, place.port)
        except OSError as error:
            if time.monotonic() > end:
                taken = "; another run, another program or a second process with rank 0 holds the port"
                why = f"{error.strerror}{taken if error.errno == errno.EADDRINUSE else ''}"
                raise RuntimeError(f"rank 0 cannot listen on port {place.port}: {why}") from error
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
            # An address that is not this node's own, as behind a NAT: then on all.
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


def _open_store(place: Place, end: float, *, listener: socket.socket | None) -> dist.Store:
    """Connect to the store, or keep it, within the time that is left.

    Torch's constructor waits in C++ for an answer, without a time-out where the other side accepts and says
    nothing; a name server may be as slow. So both are asked in a thread of its own; one that has not come
    back when time is up is left behind.
    """
    opened: list[dist.Store | Exception] = []
    waits_for = ["an answer of the name server"]

    def connect() -> None:
        try:
            if listener is None:
                _knock(place, end)
            waits_for[0] = (
                f"an answer: something at port {place.port} accepts connections but does not speak as rank 0 "
                "does, so another program holds the port"
            )
            opened.append(_store(place, end, listener))
        except Exception as error:
            opened.append(error)

    thread = threading.Thread(target=connect, name="sage-connect", daemon=True)
    thread.start()
    while thread.is_alive() and time.monotonic() < end + SLICE:
        thread.join(SLICE)
    if not opened:
        raise RuntimeError(f"waited in vain for {waits_for[0]}")
    if isinstance(opened[0], _NoWay):
        raise opened[0]
    if isinstance(opened[0], Exception):
        reason = str(opened[0]).splitlines()[0]
        if "Ping failed" in reason:  # torch's words for an answer that is no store's
            raise RuntimeError(f"waited in vain for {waits_for[0]}") from opened[0]
        raise RuntimeError(f"{reason}; does another program hold the port?") from opened[0]
    return opened[0]


def _store(place: Place, end: float, listener: socket.socket | None) -> dist.Store:
    return dist.TCPStore(
        place.hostip,
        place.port,
        is_master=listener is not None,
        timeout=timedelta(seconds=max(1.0, end - time.monotonic())),
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )


class _NoWay(RuntimeError):
    """The meeting point cannot be reached; the message says why."""


def _knock(place: Place, end: float) -> None:
    """Wait until something listens at the meeting point.

    Raises:
        _NoWay: where nothing does in time.
    """
    start = time.monotonic()
    while True:
        now = time.monotonic()
        try:
            socket.create_connection(
                (place.hostip, place.port), timeout=max(0.1, min(end - now, 5.0))
            ).close()
            return
        except (OSError, UnicodeError) as error:
            unknown = isinstance(error, socket.gaierror | UnicodeError) and now > start + NAME_SECONDS
            if unknown or time.monotonic() >= end - 0.1:
                raise _NoWay(_why(error, place)) from error
        time.sleep(0.1)


def _why(error: Exception, place: Place) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"rank 0 of {place.world_size} did not come: nothing listens there"
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"the name {clean_text(place.hostip, 100)} does not resolve"
    if isinstance(error, TimeoutError):
        return "no answer: the host is off, or a firewall drops what is sent there"
    return f"no way there: {getattr(error, 'strerror', None) or error}"
