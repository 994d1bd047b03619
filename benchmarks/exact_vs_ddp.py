"""Measures the overhead of the engine's step over plain DistributedDataParallel, without compression.

Both train the same model on the same batches with the same ranks, threads and optimiser, in one process group
on loopback. They alternate every few steps. The result is the ratio of the slowest rank's median step times.
The DDP side is the minimal loop that a user would write. The SAGE side is the engine's complete step, with
ledger, records and stop signal.

    python benchmarks/exact_vs_ddp.py [--workload digits] [--world-size 2] [--turns 20] [--log-every 1]
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from sage import registry
from sage.comm.process import ProcessWire
from sage.comm.rendezvous import Place, local_places
from sage.config import load, resolve
from sage.data.dataset import Batch, data_root
from sage.records.progress import Display
from sage.records.record import recorder
from sage.train.loop import Training
from sage.train.run import build_model
from sage.train.schedules import optimizer
from sage.train.stop import Stop

WARM_UP = 2
"""Number of warm-up turns, which are not counted."""


def measure(place: Place, given: argparse.Namespace, folder: Path, out: Any) -> None:
    """Run one rank: alternate between the engine and DDP, and write the counted step times to `out`."""
    torch.set_num_threads(1)
    overrides = {
        "reducer": "exact",
        "world_size": given.world_size,
        "device": "cpu",
        "epochs": 10_000.0,
        "log_every": given.log_every,
    }
    config = replace(resolve(load(given.workload, overrides=overrides)), runs=folder)
    wire = ProcessWire(place, device=torch.device("cpu"))
    data = registry.load("datasets", config.data)(data_root(), **config.data_options)

    def fresh() -> torch.nn.Module:
        return build_model(config, data, wire, torch.device("cpu"))

    training = Training(
        config,
        wire,
        model=fresh(),
        data=data,
        task=registry.load("tasks", config.task)(data.facts),
        reducer=registry.load("reducers", "exact")(),
        folder=config.folder,
        record=recorder(config.folder, place.rank),
        stop=Stop(),
        display=Display("", enabled=False),
    )
    task = registry.load("tasks", config.task)(data.facts)
    # DDP's default buckets of 25 MB overlap with backward.
    ddp = DistributedDataParallel(fresh())
    update = optimizer(config, ddp)

    def ddp_step(batches: list[Batch]) -> None:
        update.zero_grad()
        task.loss(ddp, batches[0]).backward()
        if config.clip_global is not None:
            torch.nn.utils.clip_grad_norm_(ddp.parameters(), config.clip_global)
        update.step()

    steps: dict[str, Callable[[list[Batch]], None]] = {"engine": training.take_step, "ddp": ddp_step}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    batches_left = training.endless_batches()
    for turn in range(WARM_UP + given.turns):
        for name, take_step in steps.items():
            for _ in range(given.steps):
                batches = next(batches_left)
                wire.texts("")  # all ranks start a step at the same time
                start = time.perf_counter()
                take_step(batches)
                if turn >= WARM_UP:
                    seconds[name].append(time.perf_counter() - start)
    training.settle()
    wire.close()
    out.put(seconds)


def main() -> None:
    """Run the ranks and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--log-every", type=int, default=1)
    given = parser.parse_args()
    context = get_context("fork")
    out = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        places = local_places(given.world_size)
        ranks = [context.Process(target=measure, args=(place, given, Path(folder), out)) for place in places]
        for rank in ranks:
            rank.start()
        seconds = [out.get() for _ in ranks]
        for rank in ranks:
            rank.join()
    names = ("engine", "ddp")
    slowest = {
        name: [max(step_times) for step_times in zip(*(s[name] for s in seconds), strict=True)]
        for name in names
    }
    turns = {
        name: [statistics.median(t[i : i + given.steps]) for i in range(0, len(t), given.steps)]
        for name, t in slowest.items()
    }
    ratios = sorted(ours / ddp for ours, ddp in zip(turns["engine"], turns["ddp"], strict=True))
    quarter = len(ratios) // 4
    result = {
        "workload": given.workload,
        "world_size": given.world_size,
        "threads": 1,
        "turns": given.turns,
        "steps_a_turn": given.steps,
        "warm_up_turns": WARM_UP,
        "log_every": given.log_every,
        "median_step_ms": {name: round(1e3 * statistics.median(t), 2) for name, t in slowest.items()},
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "quartiles": [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)],
        },
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
