"""Executes one run: load the parts by name, start or join the ranks, train, and write the result.

A run folder is named by the hash of the configuration. Rerunning the same configuration reuses a finished run
and resumes an interrupted one.
"""

import os
import random
import signal
import sys
import threading
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import Literal, NoReturn

import numpy as np
import torch
from torch import nn

from sage import registry, storage
from sage.comm import rendezvous
from sage.comm.agreement import compare
from sage.comm.probe import probe
from sage.comm.process import ProcessWire
from sage.comm.rendezvous import Place
from sage.comm.spawn import is_new_error
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import Config, resolve
from sage.data.dataset import Dataset, data_root
from sage.exit_status import FATAL, INTERRUPTED, notify_job
from sage.records import run_folder
from sage.records.loader import LARGE_SHARE, waited
from sage.records.manifest import add_end, host, manifest
from sage.records.progress import Display
from sage.records.record import Recorder, now, recorder
from sage.records.run_folder import RunInUse
from sage.records.upload import Upload
from sage.registry.signature import facts_for
from sage.storage import write_json
from sage.storage.remote.url import mark
from sage.train import choose_mount, preflight
from sage.train.claim import claimed, is_finished, prepare_folder
from sage.train.failure import classify, detect_first_step_failure, keep_traceback
from sage.train.fingerprint import facts, software
from sage.train.garbage import resume_collection
from sage.train.loop import Training
from sage.train.quorum import spawn_with_quorum
from sage.train.result import result
from sage.train.stop import Stop


def main(config: Config) -> int:
    """Execute a run and return the exit status.

    0: finished; 75: stopped and saved; 1: failed; 2: failed, and would fail again.

    Raises:
        ValueError: The configuration, the environment or the data is invalid.
    """
    config = resolve(config)
    place = rendezvous.place()
    if place is not None:
        if config.workers_in_process:
            raise ValueError(
                f"workers_in_process simulates all ranks here, but this is rank {place.rank} of "
                f"{place.world_size} ({place.source}): set only one of the two"
            )
        preflight.check(config, here=False)
        mark(config.runs)
        return _rank(replace(config, world_size=place.world_size), place)
    preflight.check_folder("runs", config.runs, writable=False)
    if is_finished(config):
        return 0
    preflight.check(config, here=True)
    mark(config.runs)
    if config.workers_in_process:
        return _simulated(config)
    software()  # cached here, so that forked ranks do not each read the source files
    # Forked ranks do not import torch again. CUDA does not support fork.
    method: Literal["fork", "spawn"] = "spawn" if device_of(config, 0).type == "cuda" else "fork"
    if method == "fork":
        # The imports of the first optimiser take over a second: do them once here, not on every rank.
        torch.optim.SGD([torch.zeros(1, requires_grad=True)])
        choose_mount.preload(config.mount)
    resume_collection()
    return spawn_with_quorum(partial(_rank, config), config, method)


# Start the ranks, as processes or as threads.


def _rank(config: Config, place: Place) -> int:
    """Run one rank, from the rendezvous to the exit status."""
    torch.set_num_threads(config.threads)
    stop, upload = Stop(), Upload(config.folder)
    stop.handle_in_thread(partial(_leave_early, place))
    wire: ProcessWire | None = None
    try:
        device = device_of(config, place.local_rank)
        wire = ProcessWire(
            place, device=device, timeout=config.timeout, guard=config.guard, facts=facts(config, device)
        )
        code = _work(config, wire, device, stop, upload)
        wire.close()
        if wire.rank == 0:
            notify_job(code, "")
        upload.finish(code)
        return code
    except (Exception, SystemExit) as error:
        end = classify(error)
        text = end.text if end.text.startswith("rank ") else f"rank {place.rank}: {end.text}"
        notify_job(end.status, text)
        if not isinstance(error, RunInUse):
            reason = {"time": now(), "rank": place.rank, "error": text, "status": end.status}
            run_folder.write_failure(config.folder, reason)
        # Before the others can see that this rank exits.
        is_new = is_new_error(place.rank, text, is_refusal=end.is_refusal, is_consequence=end.is_consequence)
        if wire is not None and not end.is_consequence:
            wire.announce_exit(end.text)
        where = "" if end.is_expected else keep_traceback(config.folder, place.rank, error)
        if is_new:
            _print_error(text + where)
        upload.finish(end.status)
        # The process group is broken: an orderly close would wait for ranks that have ended.
        _exit(end.status)


def _leave_early(place: Place, number: signal.Signals) -> None:
    """End this rank immediately after a stop signal that arrives before training."""
    text = (
        f"rank {place.rank}: stopped by {number.name} before the first step; rerun the same command to start "
        "again"
    )
    notify_job(INTERRUPTED, text)
    if is_new_error(place.rank, text):
        _print_error(text)
    _exit(INTERRUPTED)


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _simulated(config: Config) -> int:
    """Run all ranks as threads that take turns."""
    torch.set_num_threads(config.threads)
    device = device_of(config, 0)
    stop, upload = Stop(), Upload(config.folder)
    is_main_thread = threading.current_thread() is threading.main_thread()

    def work(wire: Wire) -> int:
        return _work(config, wire, device, stop, upload)

    try:
        with stop.handling() if is_main_thread else nullcontext():
            code = max(simulate(config.world_size, work, guard=config.guard))
            upload.finish(code)
            return code
    except ValueError:
        upload.finish(FATAL)
        raise
    except (Exception, SystemExit) as error:
        end = classify(error)
        _print_error(end.text if end.is_expected else end.text + keep_traceback(config.folder, 0, error))
        upload.finish(end.status)
        return end.status


# The work of one rank.


def _work(config: Config, wire: Wire, device: torch.device, stop: Stop, upload: Upload) -> int:
    with claimed(config, wire):
        if wire.texts(prepare_folder(config) if wire.rank == 0 else "")[0] == "finished":
            return 0
        if wire.rank == 0:
            upload.start()
        return _train(config, wire, device, stop)


def _train(config: Config, wire: Wire, device: torch.device, stop: Stop) -> int:
    data = registry.load("datasets", config.data)(data_root(config.data_root), **config.data_options)
    if isinstance(wire, ProcessWire):
        compare(wire, {f"checksum of {name}": value for name, value in data.checksums.items()})
    model = build_model(config, data, wire, device)
    with closing(recorder(config.folder, wire.rank, config)) as record:
        return _trained(config, wire, data, model, record, stop, device)


def _trained(
    config: Config,
    wire: Wire,
    data: Dataset,
    model: nn.Module,
    record: Recorder,
    stop: Stop,
    device: torch.device,
) -> int:
    folder = config.folder
    display = Display(f"{config.workload} · {config.reducer}", enabled=wire.rank == 0)
    training = Training(
        config,
        wire,
        model=model,
        data=data,
        task=registry.load("tasks", config.task)(data.facts),
        reducer=registry.load("reducers", config.reducer)(**config.reducer_options),
        folder=folder,
        record=record,
        display=display,
        stop=stop,
    )
    # From here on each rank has its own random numbers, for example for dropout.
    seed = config.seed * 1_000_003 + 1 + wire.rank
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    hosts = wire.texts(host())
    links = probe(wire, device=device) if isinstance(wire, ProcessWire) else None
    if wire.rank == 0:
        write_json(folder / "config.json", config.to_dict(), storage.CONFIG)
        parts = {"model": model, "data": data}
        said = {kind: text for kind, part in parts.items() if (text := getattr(part, "provenance", ""))}
        content = manifest(config.to_dict(), data.checksums, hosts=hosts, links=links, provenance=said)
        write_json(folder / "manifest.json", content, storage.MANIFEST)
    if source := training.resume():
        record.event("resumed", step=training.step, source=source)
        display.print(f"resuming from {source}, at step {training.step} of {training.total_steps}: {folder}")
    stop.begin()
    resume_collection()
    with display, detect_first_step_failure(training):
        finished = training.run()
        training.trace.finish()
    if not finished:
        record.event("stopped", step=training.step)
        display.print(
            f"stopped and saved at step {training.step}; rerun the same command to resume: {folder}"
        )
        return INTERRUPTED
    training.mount.close()
    content = result(training)
    record.hparams(config.to_dict(), content["final"])
    if wire.rank == 0:
        add_end(folder)
    record.finish(content)
    if content["loader_share"] >= LARGE_SHARE:
        display.print(waited(content["loader_share"], config.data_options))
    display.print(f"finished: {folder}")
    return 0


def build_model(config: Config, data: Dataset, wire: Wire, device: torch.device) -> nn.Module:
    """Build the model, with the same weights on every rank."""
    build = registry.load("models", config.model)
    torch.manual_seed(config.seed)
    facts = facts_for(build, data.facts, model=config.model, data=config.data)
    model: nn.Module = build(**config.model_options, **facts).to(device)
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            wire.broadcast(tensor, root=0, kind="state")
    return model


def device_of(config: Config, local_rank: int) -> torch.device:
    """Return the device of a rank, by its number among the ranks of its node."""
    if (
        config.device == "cpu" or not torch.cuda.is_available()
    ):  # `preflight.check` has already refused device=cuda
        return torch.device("cpu")
    count = torch.cuda.device_count()
    # If the launcher binds one GPU to each task, each rank sees a single GPU.
    return torch.device("cuda", local_rank if local_rank < count else local_rank % count)


def _print_error(text: str) -> None:
    print(f"sage: {text}", file=sys.stderr, flush=True)
