"""The rendezvous of a run: connects each rank to rank 0's store, and compares the ranks' facts there.

Every wait ends by the timeout, also if another program holds the port and never answers. Each rank writes
its facts (settings, versions, checksums) under a key of its own. Rank 0 reads them when all ranks have
joined, and writes a verdict that every rank reads: continue, or end with an error that states the difference.
"""

import hashlib
import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from sage.comm.agreement import Facts, RanksDiffer, differences, format_ranks, refusal
from sage.comm.listener import PortTaken, listen
from sage.comm.rendezvous import Place
from sage.comm.store_messages import StoreMessages
from sage.output.text import clean_text

SLICE = 0.25
"""Seconds of one blocking wait in the store; Python handles signals between two waits."""
CLOSE_SECONDS = 5.0
"""Seconds for which rank 0 keeps the store open after an error, so that the others can read it."""
NAME_SECONDS = 10.0
"""Seconds for which a name that does not resolve is retried: a node's name may be registered late."""
SECOND_SECONDS = 2.0
"""Seconds for which a second process with rank 0 tries to reach the first."""
CLAIMED_SECONDS = 10.0
"""Seconds to wait for missing ranks after two processes have claimed the same rank."""
GAVE_UP = "gave up"
"""The fact that a rank writes when its timeout is over and it exits."""


def join_store(place: Place, *, timeout: float, facts: Facts) -> StoreMessages:
    """Join the other ranks, compare facts, and return access to the messages of this run.

    Args:
        place: This rank, and the rendezvous address.
        timeout: Seconds within which all ranks must join.
        facts: Values that must be the same on all ranks, by name.

    Raises:
        RanksDiffer: on every rank, if facts differ.
        RuntimeError: if the port is unreachable or used by another program, or a rank did not join.
    """
    end = time.monotonic() + timeout
    facts = {"world_size": str(place.world_size), **facts}
    hosts = place.rank == 0 and not _agent_hosts_the_store(place)
    try:
        listener = listen(place, timeout) if hosts else None
    except PortTaken:
        _refuse_second(place)
        raise
    store = _open_store(place, end, listener=listener)
    messages = _claim(place, store)
    messages.post(f"facts {place.rank}", json.dumps(facts))
    messages.count("arrivals")
    if place.rank == 0:
        verdict = _decide(messages, place.world_size, end)
        messages.post("verdict", json.dumps(verdict))
        if verdict["fault"] and hosts:
            _until_read(messages, place.world_size)
    else:
        verdict = _await_verdict(messages, place, end)
        messages.count("read")
    if not verdict["fault"] and place.rank >= int(verdict["world_size"]):
        difference = differences({0: {"world_size": verdict["world_size"]}, place.rank: facts})
        raise RanksDiffer(refusal(difference))
    if verdict["fault"]:
        raise (RanksDiffer if verdict["kind"] == "differ" else RuntimeError)(
            clean_text(verdict["fault"], 1500)
        )
    # All later keys also depend on the facts that were compared.
    return messages.within(hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16])


def _claim(place: Place, store: dist.Store) -> StoreMessages:
    """Claim this rank, and return the messages of this attempt.

    Raises:
        RuntimeError: if another process has claimed the rank; the other ranks raise it too.
    """
    messages = StoreMessages(store, secret=place.secret).within(f"attempt {place.attempt}")
    if messages.count(f"seat {place.rank}") > 1:
        messages.post_first("claimed twice", str(place.rank))
        messages.count("arrivals")
        raise RuntimeError(f"another process already has rank {place.rank}")
    return messages


# Rank 0's verdict.


def _decide(messages: StoreMessages, world_size: int, end: float) -> dict[str, str]:
    """Wait for the facts of every rank, compare them and return the verdict."""
    facts: dict[int, Facts] = {}
    arrived, twice = -1, None
    while len(facts) < world_size:
        now = messages.count("arrivals", 0)
        if now != arrived:
            arrived = now
            for rank in set(range(world_size)) - facts.keys():
                if (text := messages.read(f"facts {rank}")) is not None:
                    facts[rank] = _parsed(text)
            # If the world sizes differ, some ranks may never join.
            if len({rank_facts.get("world_size") for rank_facts in facts.values()}) > 1:
                break
            if twice is None and (twice := messages.read("claimed twice")) is not None:
                end = min(end, time.monotonic() + CLAIMED_SECONDS)
        elif time.monotonic() > end:
            absent = sorted(set(range(world_size)) - facts.keys())
            fault = f"{format_ranks(absent)} of {world_size} did not join"
            if twice is not None:
                fault += f", and two processes have rank {twice}: give each process its own rank"
            if difference := differences(facts):
                fault += f", and the ranks that joined differ: {difference}"
            return {"fault": fault, "kind": "absent", "world_size": str(world_size)}
        else:
            time.sleep(0.02)
    for rank, rank_facts in facts.items():  # a rank that gave up has overwritten its facts
        if GAVE_UP in _parsed(messages.read(f"facts {rank}") or "{}"):
            fault = f"rank {rank} joined and then gave up: {rank_facts.get(GAVE_UP, 'its timeout expired')}"
            return {"fault": fault, "kind": "absent", "world_size": str(world_size)}
    difference = differences(facts)
    return {
        "fault": refusal(difference) if difference else "",
        "kind": "differ",
        "world_size": str(world_size),
    }


def _await_verdict(messages: StoreMessages, place: Place, end: float) -> dict[str, str]:
    # Rank 0 may have started later, and then reaches its own timeout after this rank.
    while not messages.await_one("verdict", SLICE):
        if time.monotonic() > end:
            here = [rank for rank in range(place.world_size) if messages.has(f"facts {rank}")]
            absent = sorted(set(range(place.world_size)) - set(here))
            messages.post(f"facts {place.rank}", json.dumps({GAVE_UP: "its timeout expired"}))
            if 0 in absent:
                raise RuntimeError(
                    f"rank 0 of {place.world_size} did not join: another program or another run uses the "
                    "port, or the ranks have different values of SAGE_SECRET"
                )
            raise RuntimeError(f"{format_ranks(absent or [0])} of {place.world_size} did not join")
    verdict = _parsed(messages.read("verdict") or "{}")
    if not verdict.keys() >= {"fault", "kind", "world_size"} or not verdict["world_size"].isdigit():
        raise RuntimeError(
            "the verdict of rank 0 in the store is invalid: another program wrote to the store"
        )
    return verdict


def _until_read(messages: StoreMessages, world_size: int) -> None:
    """Keep the store open until the other ranks have read the verdict, for a few seconds at most."""
    end = time.monotonic() + CLOSE_SECONDS
    with suppress(RuntimeError):
        while messages.count("read", 0) < world_size - 1 and time.monotonic() < end:
            time.sleep(0.05)


def _parsed(text: str) -> dict[str, str]:
    """Parse a rank's facts; for a text that is not a JSON object, return the fact that it is unreadable."""
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        return {"facts": "unreadable"}
    return {str(name): str(value) for name, value in facts.items()}


# The store.


def _agent_hosts_the_store(place: Place) -> bool:
    """Whether torchrun's agent hosts the store: always, except for a static rendezvous of several nodes."""
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return by_agent and os.environ.get("MASTER_PORT") == str(place.port)


def _refuse_second(place: Place) -> None:
    """Tell the process that holds the port, if that is rank 0 of the same run, that this one is rank 0 too.

    Otherwise it would wait for the missing ranks until its timeout.

    Raises:
        RuntimeError: if the port is held by rank 0 of the same run.
    """
    try:
        store = _open_store(place, time.monotonic() + SECOND_SECONDS, listener=None)
    except RuntimeError:  # another program holds the port
        return
    with suppress(dist.DistError):  # a store of another program, or one that has just closed
        _claim(place, store)


def _open_store(place: Place, end: float, *, listener: socket.socket | None) -> dist.Store:
    """Connect to the store, or host it, within the remaining time.

    Torch's constructor waits in C++ for an answer, without a timeout if the other side accepts the connection
    and sends nothing; a name server may be equally slow. Therefore both calls run in a separate thread, which
    is abandoned if it has not finished in time.
    """
    opened: list[dist.Store | Exception] = []
    reason = ["the name server does not answer"]

    def connect() -> None:
        try:
            if listener is None:
                _await_listener(place, end)
            reason[0] = (
                f"the process at port {place.port} accepts connections but does not answer as rank 0 does, "
                "so another program uses the port"
            )
            opened.append(_store(place, end, listener))
        except Exception as error:
            opened.append(error)

    thread = threading.Thread(target=connect, name="sage-connect", daemon=True)
    thread.start()
    while thread.is_alive() and time.monotonic() < end + SLICE:
        thread.join(SLICE)
    if not opened:
        raise RuntimeError(reason[0])
    if isinstance(opened[0], _Unreachable):
        raise opened[0]
    if isinstance(opened[0], Exception):
        first = str(opened[0]).splitlines()[0]
        if "Ping failed" in first:  # torch's error for an answer that is not from a store
            raise RuntimeError(reason[0]) from opened[0]
        raise RuntimeError(f"{first}; check whether another program uses the port") from opened[0]
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


class _Unreachable(RuntimeError):
    """The rendezvous address cannot be reached; the message gives the reason."""


def _await_listener(place: Place, end: float) -> None:
    """Wait until a process listens at the rendezvous address.

    Raises:
        _Unreachable: if none does within the remaining time.
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
                raise _Unreachable(_why(error, place)) from error
        time.sleep(0.1)


def _why(error: Exception, place: Place) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"rank 0 of {place.world_size} did not join: no process listens at this address"
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"the name {clean_text(place.hostip, 100)} does not resolve"
    if isinstance(error, TimeoutError):
        return "no answer: the host is down, or a firewall drops the packets"
    return f"cannot connect: {getattr(error, 'strerror', None) or error}"
