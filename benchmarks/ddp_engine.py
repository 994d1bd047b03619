"""Measures the dense baselines of `sage run --mount ddp` against bare DistributedDataParallel loops.

`exact` is compared with DDP without a hook, `bf16` with DDP and torch's `bf16_compress_hook`. All train the
same model on the same batches with the same ranks, threads and optimiser, in one process group on loopback,
and alternate every few steps. The bare loop is the shortest that trains; the engine's step also has ledger,
gradient norm, records and stop signal. The result is the ratio of the slowest rank's median step times per
turn, and likewise of the processor times of all threads, which depend less on other load of the machine.
With --rate, each rank has a node of its own on a SLURM cluster with links of this speed (allocation.py).

    python benchmarks/ddp_engine.py [--workload digits] [--world-size 2] [--turns 20] [--depth 18]
    python benchmarks/ddp_engine.py --rate 100mbit [...]
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from sage import registry
from sage.comm import rendezvous
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

PAIRS = (("exact", "ddp"), ("bf16", "ddp bf16_compress_hook"))
"""Reducer of the engine, and the bare loop that it is compared with."""

Step = Callable[[list[Batch]], None]


def measure(place: Place, given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run one rank: alternate between the engine and the bare loops; return all ranks' counted times."""
    torch.set_num_threads(1)
    overrides: dict[str, Any] = {
        "mount": "ddp",
        "world_size": given.world_size,
        "device": "cpu",
        "epochs": 1e4,
    }
    if given.depth is not None:
        overrides["model_options"] = {"depth": given.depth}
    if given.hidden is not None:
        overrides["model_options"] = {"hidden": given.hidden, "embedding": given.hidden}
    base = replace(resolve(load(given.workload, overrides=overrides)), runs=folder)
    wire = ProcessWire(place, device=torch.device("cpu"))
    data = registry.load("datasets", base.data)(data_root(), **base.data_options)

    def engine(reducer: str) -> Training:
        config = replace(base, reducer=reducer, reducer_options={})
        return Training(
            config,
            wire,
            model=build_model(config, data, wire, torch.device("cpu")),
            data=data,
            task=registry.load("tasks", config.task)(data.facts),
            reducer=registry.load("reducers", reducer)(),
            folder=config.folder,
            record=recorder(config.folder, place.rank),
            stop=Stop(),
            display=Display("", enabled=False),
        )

    def bare(name: str) -> Step:
        task = registry.load("tasks", base.task)(data.facts)
        model = DistributedDataParallel(build_model(base, data, wire, torch.device("cpu")))
        if "bf16" in name:
            model.register_comm_hook(None, bf16_compress_hook)
        update = optimizer(base, model)

        def step(batches: list[Batch]) -> None:
            update.zero_grad()
            task.loss(model, batches[0]).backward()
            if base.clip_global is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), base.clip_global)
            update.step()

        return step

    engines = {reducer: engine(reducer) for reducer, _ in PAIRS}
    steps: dict[str, Step] = {name: training.take_step for name, training in engines.items()}
    steps |= {name: bare(name) for _, name in PAIRS}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    processor: dict[str, list[float]] = {name: [] for name in steps}
    source = engines["exact"]
    batches_left = source.endless_batches()
    for turn in range(WARM_UP + given.turns):
        first = turn % len(steps)
        for name in [*list(steps)[first:], *list(steps)[:first]]:
            for _ in range(given.steps):
                batches = next(batches_left)
                wire.texts("")  # all ranks start a step at the same time
                start, spent = time.perf_counter(), time.process_time()
                steps[name](batches)
                if turn >= WARM_UP:
                    seconds[name].append(time.perf_counter() - start)
                    processor[name].append(time.process_time() - spent)
    for training in engines.values():
        training.settle()
        training.mount.close()
    own = {"seconds": seconds, "processor": processor, "parameters": source.mount.num_elements}
    of_ranks = [json.loads(text) for text in wire.texts(json.dumps(own))]
    wire.close()
    return of_ranks


def compared(slowest: dict[str, list[float]], steps: int) -> dict[str, dict[str, Any]]:
    """Ratio of each engine's median step time per turn to its bare loop's: median and quartiles."""
    turns = {
        name: [statistics.median(times[i : i + steps]) for i in range(0, len(times), steps)]
        for name, times in slowest.items()
    }
    comparison = {}
    for ours, theirs in PAIRS:
        ratios = sorted(a / b for a, b in zip(turns[ours], turns[theirs], strict=True))
        quarter = len(ratios) // 4
        comparison[f"{ours} / {theirs}"] = {
            "median": round(statistics.median(ratios), 3),
            "quartiles": [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)],
        }
    return comparison


def main() -> None:
    """Run the ranks and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--depth", type=int, help="of a ResNet: 18, 20, 56 or 110")
    parser.add_argument("--hidden", type=int, help="hidden and embedding size of an LSTM")
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rate", help="of each link of a cluster, in tc's notation; default: loopback")
    given = parser.parse_args()
    if given.rate is not None:
        from allocation import allocation

        options = [word for word in sys.argv[1:] if word not in ("--rate", given.rate)]
        with allocation(given.world_size, given.rate) as run:
            print(run(sys.executable, str(Path(__file__).resolve()), *options), end="")
        return
    own = rendezvous.place()
    first, *others = [own] if own is not None else local_places(given.world_size)
    with tempfile.TemporaryDirectory() as folder:
        context = get_context("fork")
        ranks = [context.Process(target=measure, args=(place, given, Path(folder))) for place in others]
        for rank in ranks:
            rank.start()
        results = measure(first, given, Path(folder))
        for rank in ranks:
            rank.join()
    if first.rank == 0:
        print(json.dumps(result_of(results, given), indent=2))


def result_of(results: list[dict[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    """Return medians and ratios of the slowest rank's times."""
    slowest, busiest = (
        {
            name: [
                max(step_times) for step_times in zip(*(rank[kind][name] for rank in results), strict=True)
            ]
            for name in results[0][kind]
        }
        for kind in ("seconds", "processor")
    )
    return {
        "workload": given.workload,
        "parameters": results[0]["parameters"],
        "world_size": given.world_size,
        "threads": 1,
        "turns": given.turns,
        "steps_a_turn": given.steps,
        "warm_up_turns": WARM_UP,
        "median_step_ms": {name: round(1e3 * statistics.median(t), 2) for name, t in slowest.items()},
        "ratio": compared(slowest, given.steps),
        "median_processor_ms": {name: round(1e3 * statistics.median(t), 2) for name, t in busiest.items()},
        "processor_ratio": compared(busiest, given.steps),
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
    }


if __name__ == "__main__":
    main()
