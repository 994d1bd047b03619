"""Runs a measurement on the ranks that this process belongs to, or starts them on this machine."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Literal, NoReturn

import torch

from sage.comm import rendezvous
from sage.comm.agreement import Facts
from sage.comm.process import ProcessWire
from sage.comm.rendezvous import Place
from sage.comm.spawn import is_new_error, spawn
from sage.config import Config
from sage.exit_status import INTERRUPTED, notify_job
from sage.train import preflight
from sage.train.failure import classify
from sage.train.fingerprint import facts, software
from sage.train.run import device_of
from sage.train.stop import Stop

Work = Callable[[ProcessWire, torch.device], int]
"""The work of one rank; returns the exit status."""


def run(name: str, config: Config, settings: Facts, work: Work) -> int:
    """Run `work` on every rank and return the exit status, as `sage run` does.

    0: finished; 75: stopped by a signal; 1: failed; 2: failed, and would fail again.

    Args:
        name: The command, for messages.
        config: The device, the threads, the time-out and, if the ranks are started here, their number.
        settings: What must be the same on all ranks, in addition to the configuration.
        work: The work of one rank.

    Raises:
        ValueError: The configuration or the environment is invalid.
    """
    place = rendezvous.place()
    preflight.check(config, here=place is None)
    if place is not None:
        return _rank(name, config, settings, work, place)
    software()  # cached here, so that forked ranks do not each read the source files
    method: Literal["fork", "spawn"] = "spawn" if device_of(config, 0).type == "cuda" else "fork"
    return spawn(partial(_rank, name, config, settings, work), config.world_size, method=method)


def _rank(name: str, config: Config, settings: Facts, work: Work, place: Place) -> int:
    """Run one rank, from the rendezvous to the exit status."""
    torch.set_num_threads(config.threads)
    Stop().handle_in_thread(partial(_leave, name, place))
    wire: ProcessWire | None = None
    try:
        device = device_of(config, place.local_rank)
        same = {**facts(config, device), **settings}
        wire = ProcessWire(place, device=device, timeout=config.timeout, guard=config.guard, facts=same)
        status = work(wire, device)
        wire.close()
        return status
    except (Exception, SystemExit) as error:
        end = classify(error)
        text = end.text if end.text.startswith("rank ") else f"rank {place.rank}: {end.text}"
        notify_job(end.status, text)
        is_new = is_new_error(place.rank, text, is_refusal=end.is_refusal, is_consequence=end.is_consequence)
        if wire is not None and not end.is_consequence:
            wire.announce_exit(end.text)
        if is_new:
            print(f"{name}: {text}", file=sys.stderr)
            if not end.is_expected:
                sys.excepthook(type(error), error, error.__traceback__)
        _exit(end.status)  # an orderly close would wait for ranks that have ended


def _leave(name: str, place: Place, number: signal.Signals) -> None:
    """End this rank at once after a stop signal: there is nothing to save."""
    text = f"rank {place.rank}: stopped by {number.name} before the end; run the same command again"
    notify_job(INTERRUPTED, text)
    if is_new_error(place.rank, text):
        print(f"{name}: {text}", file=sys.stderr)
    _exit(INTERRUPTED)


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
