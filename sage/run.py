"""One run: find the parts by name, start the ranks or join them, train, and leave a result.

A run's folder is named by the hash of its configuration. Asked twice, it runs once; stopped, it goes on.
"""

import ctypes
import inspect
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sage import registry
from sage.comm import rendezvous
from sage.comm.process import ProcessWire
from sage.comm.rendezvous import Place
from sage.comm.threads import simulate
from sage.comm.wire import Wire, WireError
from sage.config import Config, resolve
from sage.feed.data import Dataset, data_root
from sage.task import TASKS
from sage.tell.manifest import manifest
from sage.tell.progress import Display
from sage.tell.record import recorder, write_json
from sage.train import Diverged, Stop, Training

INTERRUPTED = 75
"""Exit status (EX_TEMPFAIL) of a run that stopped when asked and has saved itself: run it again to go on."""

GRACE = 10.0
"""Seconds that the other ranks get, after one has failed, to notice it by themselves."""


def main(config: Config) -> int:
    """Run it, and return the exit status: 0 finished, 75 stopped and saved, 1 failed.

    Raises:
        ValueError: where the configuration, the environment or the data is at fault.
    """
    config = resolve(config)
    place = rendezvous.place()
    if place is not None:
        if config.workers_in_process:
            raise ValueError(
                f"workers_in_process simulates all ranks here, but this is rank {place.rank} of "
                f"{place.world_size} ({place.source}): leave out one or the other"
            )
        return _rank(replace(config, world_size=place.world_size), place)
    if config.fresh:
        shutil.rmtree(config.folder, ignore_errors=True)
    elif (config.folder / "result.json").exists():
        _say_finished(config)
        return 0
    if config.workers_in_process:
        return _simulated(config)
    return _spawned(config)


# The ways to have ranks.


def _spawned(config: Config) -> int:
    """Start all ranks here, as processes, and end them all when one fails."""
    # Forked ranks need not import torch again; CUDA cannot be forked.
    context: Any = multiprocessing.get_context("spawn" if _device(config, 0).type == "cuda" else "fork")
    if context.get_start_method() == "fork":
        # What torch imports for the first optimiser takes over a second: here once, not on every rank.
        torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    config = replace(config, fresh=False)
    ranks = [
        context.Process(target=_child, args=(config, place, os.getpid()), name=f"rank {place.rank}")
        for place in rendezvous.local_places(config.world_size)
    ]
    for process in ranks:
        process.start()
    handed_on = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]

    def hand_on(number: int, _: object) -> None:
        for process in ranks:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, hand_on) for number in handed_on}
    before[signal.SIGINT] = signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal sends it to the ranks too
    try:
        return _await(ranks)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _await(ranks: list[Any]) -> int:
    failed_at = None
    while any(process.is_alive() for process in ranks):
        multiprocessing.connection.wait(
            [process.sentinel for process in ranks if process.is_alive()], timeout=1.0
        )
        if failed_at is None and any(process.exitcode not in (None, 0, INTERRUPTED) for process in ranks):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE:
            for process in ranks:
                process.kill()
    for process in ranks:
        if process.exitcode is not None and process.exitcode < 0:
            _complain(f"{process.name} was ended by {signal.Signals(-process.exitcode).name}")
    codes = [process.exitcode for process in ranks]
    if all(code == 0 for code in codes):
        return 0
    return INTERRUPTED if all(code in (0, INTERRUPTED) for code in codes) else 1


def _child(config: Config, place: Place, parent: int) -> None:
    _die_with_parent(parent)
    sys.exit(_rank(config, place))


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this rank when the process that started it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _rank(config: Config, place: Place) -> int:
    """Be one rank of a run, from joining the others to the exit status."""
    torch.set_num_threads(config.threads)
    device = _device(config, place.local_rank)
    stop = Stop()
    stop.listen()
    try:
        wire = ProcessWire(place, device=device, timeout=config.timeout, guard=config.guard)
        code = _work(config, wire, device, stop)
        wire.close()
        return code
    except (WireError, Diverged, ValueError, OSError) as error:
        _complain(str(error) if str(error).startswith("rank ") else f"rank {place.rank}: {error}")
        # The group is broken: closing it in an orderly way would wait for ranks that will not come.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _simulated(config: Config) -> int:
    """Be all ranks of a run, as threads that take turns."""
    torch.set_num_threads(config.threads)
    device = _device(config, 0)
    stop = Stop()
    if threading.current_thread() is threading.main_thread():
        stop.listen()
    try:
        return max(
            simulate(config.world_size, lambda wire: _work(config, wire, device, stop), guard=config.guard)
        )
    except (WireError, Diverged, OSError) as error:
        _complain(str(error))
        return 1


# What a rank does.


def _work(config: Config, wire: Wire, device: torch.device, stop: Stop) -> int:
    folder = config.folder
    if _finished(config, wire):
        return 0
    data = registry.load("datasets", config.data)(data_root(config.data_root), **config.data_options)
    model = build_model(config, data, wire, device)
    record = recorder(folder, wire.rank)
    display = Display(f"{config.workload} · {config.reducer}", enabled=wire.rank == 0)
    training = Training(
        config,
        wire,
        model=model,
        data=data,
        task=TASKS[config.task](data.facts),
        reducer=registry.load("reducers", config.reducer)(**config.reducer_options),
        folder=folder,
        record=record,
        display=display,
        stop=stop,
    )
    # From here on every rank draws its own random numbers, dropout's among them.
    seed = config.seed * 1_000_003 + 1 + wire.rank
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if wire.rank == 0:
        write_json(folder / "config.json", config.to_dict())
        write_json(folder / "manifest.json", manifest(config.to_dict(), data.checksums))
    if training.resume():
        record.event("resumed", step=training.step)
        display.say(f"resumed from step {training.step} of {training.total_steps}: {folder}")
    try:
        with display:
            finished = training.run()
        if not finished:
            record.event("stopped", step=training.step)
            display.say(f"stopped and saved at step {training.step}; the same command goes on: {folder}")
            return INTERRUPTED
        result = training.result()
        record.hparams(config.to_dict(), result["final"])
        record.finish(result)
        display.say(f"finished: {folder}")
        return 0
    finally:
        record.close()


def _finished(config: Config, wire: Wire) -> bool:
    """Whether nothing is left to do, as rank 0 sees it; `--fresh` clears the folder before anybody looks."""
    told = ""
    if wire.rank == 0:
        if config.fresh:
            shutil.rmtree(config.folder, ignore_errors=True)
        elif (config.folder / "result.json").exists():
            told = "finished"
            _say_finished(config)
    return bool(wire.texts(told)[0])


def build_model(config: Config, data: Dataset, wire: Wire, device: torch.device) -> nn.Module:
    """The network, with the same weights on every rank."""
    build = registry.load("models", config.model)
    torch.manual_seed(config.seed)
    model: nn.Module = build(**config.model_options, **_facts(build, data)).to(device)
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            wire.broadcast(tensor, root=0, kind="state")
    return model


def _facts(build: Any, data: Dataset) -> dict[str, int]:
    """Those of the data set's facts that the model asks for."""
    return {name: value for name, value in data.facts.items() if name in inspect.signature(build).parameters}


def _device(config: Config, local_rank: int) -> torch.device:
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ValueError("device=cuda, but torch sees no CUDA device here: use --device cpu, or auto")
    if config.device == "cpu" or not available:
        return torch.device("cpu")
    count = torch.cuda.device_count()
    # A launcher that binds one GPU to each task shows each rank a single one.
    return torch.device("cuda", local_rank if local_rank < count else local_rank % count)


def _say_finished(config: Config) -> None:
    result = json.loads((config.folder / "result.json").read_text())
    figures = "  ".join(f"{name} {value:.4g}" for name, value in result["final"].items() if value is not None)
    print(f"already finished ({figures}): {config.folder}; --fresh runs it again", file=sys.stderr)


def _complain(text: str) -> None:
    print(f"sage: {text}", file=sys.stderr, flush=True)
