"""Checks, before any rank starts, for errors that would make a run fail on every rank.

`sage run` and `sage run --print-config` both call `check`, so both accept the same configurations.
"""

import os
from pathlib import Path

import torch

from .. import registry
from ..config import Config, check_ranks, neighbours
from ..records import tracking
from ..registry.signature import facts_for
from ..storage.remote import store
from .mount_limits import check_hierarchy

RANK_BYTES = 100 * 2**20
"""Memory per rank as a process, in addition to the pages of torch that all processes share."""

THREAD_BYTES = 8 * 2**20
"""Memory per simulated rank, which is a thread."""

RANKS_PER_CORE = 16
"""Maximum number of processes per CPU core; with more, a step takes seconds."""

EXAMPLES: tuple[dict[str, int], ...] = (
    {
        "num_classes": 10,
        "channels": 3,
        "image_size": 32,
        "vocab_size": 100,
        "num_users": 20,
        "num_items": 30,
        "num_features": 20,
    },
    {
        "num_classes": 7,
        "channels": 1,
        "image_size": 64,
        "vocab_size": 50,
        "num_users": 9,
        "num_items": 12,
        "num_features": 9,
    },
)
"""Two sets of facts. If a model raises the same error for both, its options are the cause."""


def check(config: Config, *, here: bool) -> None:
    """Refuse a configuration that cannot run.

    Args:
        here: Whether this process starts all ranks, on this machine.

    Raises:
        ValueError: The folder of runs cannot be written, its URL needs a package that is missing, a tracker
            or the device is not available, the run of `continue_from` is missing, the mount needs processes
            or another number of ranks, this machine cannot hold the number of ranks, or the model refuses
            its options.
    """
    check_folder("runs", config.runs, writable=True)
    store.check(config.runs)
    tracking.check(config.track)
    if config.continue_from is not None and not config.continue_from.is_dir():
        raise ValueError(f"continue_from is {config.continue_from}, which is not a run folder")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device=cuda, but torch finds no CUDA device here: use --device cpu or --device auto"
        )
    if config.mount != "whole" and config.workers_in_process:
        raise ValueError(
            f"mount is {config.mount!r} with workers_in_process, but its ranks must be processes: omit "
            "--workers-in-process, or use --mount whole"
        )
    check_hierarchy(config)
    if config.quorum is not None and (config.workers_in_process or not here):
        raise ValueError(
            f"quorum is {config.quorum}, but only ranks that sage run starts itself, as processes of this "
            "machine, are started again: leave --quorum out"
        )
    if here and config.mount == "fsdp":
        check_ranks(config.shards, config.world_size)
    if here and config.hierarchy == "node" and config.ranks_per_node is not None:
        neighbours(config.world_size, config.ranks_per_node)
    if here and not config.oversubscribe:
        _check_ranks(config)
    _check_model(config)


def check_folder(name: str, folder: Path, *, writable: bool) -> None:
    """Refuse a folder that neither exists nor can be created; if `writable`, one that cannot be written.

    Raises:
        ValueError: The message names the path that prevents it.
    """
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    try:
        if not existing.is_dir():
            raise ValueError(f"{name} is {folder}, but {existing} is not a folder; give another --{name}")
        if writable and not os.access(existing, os.W_OK | os.X_OK):
            raise ValueError(f"{name} is {folder}, but {existing} is not writable; give another --{name}")
    except OSError as error:
        raise ValueError(f"{name} is {folder}: {error.strerror or error}; give another --{name}") from error


def _check_ranks(config: Config) -> None:
    """Refuse more ranks than the memory and cores of this machine allow."""
    ranks = config.world_size
    needs = ranks * (THREAD_BYTES if config.workers_in_process else RANK_BYTES)
    memory = available_bytes()
    cores = len(os.sched_getaffinity(0))
    advice = "use fewer ranks, or --oversubscribe to start them anyway"
    if memory is not None and needs > memory:
        raise ValueError(
            f"world_size is {ranks}, which needs {needs / 2**30:,.1f} GiB of memory; "
            f"{memory / 2**30:,.1f} GiB are available here: {advice}"
        )
    if not config.workers_in_process and ranks > RANKS_PER_CORE * cores:
        raise ValueError(
            f"world_size is {ranks}; at most {RANKS_PER_CORE * cores} ranks are allowed on the {cores} "
            f"cores of this machine: {advice}"
        )


def available_bytes() -> int | None:
    """Return the available memory: the minimum of MemAvailable and the rest of the cgroup limit."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit.isdigit():
            used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
            limits.append(max(0, int(limit) - used))
    except (OSError, ValueError):
        pass  # not Linux, or no such control group
    return min(limits, default=None)


def _check_model(config: Config) -> None:
    """Refuse options that the model refuses for any data set; built on the meta device, without memory."""
    build = registry.load("models", config.model)
    refusals = set()
    for example in EXAMPLES:
        try:
            facts = facts_for(build, example, model=config.model, data=config.data)
        except ValueError:  # the model needs facts that the examples lack
            return
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                build(**config.model_options, **facts)
        except ValueError as error:
            refusals.add(str(error))
        except Exception:  # an unsuitable example value, or an operation that the meta device lacks
            return
        else:
            return
    if len(refusals) == 1:
        raise ValueError(refusals.pop())
