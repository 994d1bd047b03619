"""Tests that all ranks end within the time-out, with an error that names the failed rank."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from gloo import Group, RankEnded

from sage.comm.rendezvous import local_places
from sage.comm.transport import WireError
from sage.comm.wire import Wire

TIMEOUT = 5.0
STILL = 60.0
"""Seconds; longer than any of the other ranks may take."""

SUM = r"sum\(values float32\[9\]\)"
DIRECT: dict[str, tuple[Callable[[Wire], Any], str]] = {
    # collectives by direct messages: the call, and how an error describes it
    "gather": (
        lambda wire: wire.gather_rows(values=torch.ones(2**18)),
        r"gather\(values float32\[262144\]\)",
    ),
    "exchange": (
        lambda wire: wire.all_to_all(torch.ones(wire.world_size, 2**18)),
        r"all_to_all\(values float32\[\d, 262144\]\)",
    ),
}

CULPRITS: dict[str, tuple[int, int, Callable[[Wire], Any], str]] = {
    # world size, the failing rank, its failure, and the error of the others
    "rank 0 killed": (
        3,
        0,
        lambda _: os.kill(os.getpid(), signal.SIGKILL),
        r"The rendezvous store at 127.0.0.1:\d+ is gone: rank 0 has ended\.",
    ),
    "rank 1 killed, which not all are joined to": (
        4,
        1,
        lambda _: os.kill(os.getpid(), signal.SIGKILL),
        r"Cause: rank 1 does not respond \(killed, stopped, or disconnected\)\.",
    ),
    "rank 0 stopped": (
        2,
        0,
        lambda _: os.kill(os.getpid(), signal.SIGSTOP),
        r"The rendezvous store at 127.0.0.1:\d+ does not respond: rank 0 is stopped or disconnected\.",
    ),
    "rank 1 stopped": (
        2,
        1,
        lambda _: os.kill(os.getpid(), signal.SIGSTOP),
        r"Cause: rank 1 does not respond \(killed, stopped, or disconnected\)\.",
    ),
    "rank 1 asleep": (
        3,
        1,
        lambda _: time.sleep(2 * STILL),
        rf"All ranks are alive: ranks 0, 2 are in {SUM}; rank 1 is outside any collective\.",
    ),
    "rank 1 elsewhere": (
        2,
        1,
        lambda wire: wire.gather(values=torch.ones(4)),
        rf"All ranks are alive: rank 0 is in {SUM}; rank 1 is in gather\(values float32\[4\]\)\.",
    ),
}


CASES: dict[str, tuple[int, int, Callable[[Wire], Any], str, Callable[[Wire], Any], str]] = {
    **{name: (*culprit, lambda wire: wire.sum(torch.ones(9)), SUM) for name, culprit in CULPRITS.items()},
    **{
        f"{name}, {what}": (*CULPRITS[name][:3], CULPRITS[name][3].replace(SUM, said), call, said)
        for name in ("rank 1 killed, which not all are joined to", "rank 1 asleep")
        for what, (call, said) in DIRECT.items()
    },
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_rank_that_dies_or_stops_ends_the_others_with_an_error_that_names_it() -> None:
    def work(name: str) -> Callable[[Wire], None]:
        _, culprit, leave, _, call, _ = CASES[name]

        def run(wire: Wire) -> None:
            wire.texts("here we are")
            if wire.rank == culprit:
                leave(wire)
            call(wire)

        return run

    with ExitStack() as stack:
        groups = {  # all at once, because most of the time is waiting
            name: stack.enter_context(Group(local_places(world_size), work(name), timeout=TIMEOUT))
            for name, (world_size, *_) in CASES.items()
        }
        for name, (world_size, culprit, _, says, _, said) in CASES.items():
            others = set(range(world_size)) - {culprit}
            for rank, outcome in groups[name].outcomes(STILL):
                if rank == culprit and "killed" in name:
                    assert isinstance(outcome, RankEnded)
                    assert str(outcome) == f"rank {rank} was killed by SIGKILL"
                    continue
                assert isinstance(outcome, WireError), f"{name}: {outcome!r}"
                if rank in others:
                    failed = rf"^rank {rank}: {said} failed after \d\.\d s: .*\. {says}$"
                    assert re.search(failed, str(outcome)), f"{name}: {outcome}"
                others.discard(rank)
                if not others:
                    break
