"""Measures a whole reduction (select, gather, scatter) against a dense all-reduce and against plain torch.

    python benchmarks/reduce_step.py                      # measure, and write results/reduce_step.json
    python benchmarks/reduce_step.py --check --output X   # fail if a figure is below half of its goal

Ranks are processes with one thread each, in a gloo process group on loopback. The vector has the layers of
ResNet-18 (11,173,962 parameters) and is heavy-tailed. In every turn, each reducer reduces once with the
native kernels and once as with SAGE_NATIVE=0. The order is random, so that other load on the machine affects
all of them equally. The ranks start at the same time, and the slowest rank's seconds count. Times are medians
over the turns; ratios are medians of the per-turn ratios, with quartiles. Each reducer keeps its own
residual. `passes` is what no sparsifier with a residual can omit: the gradient is added to the residual, and
the vector of the mean is set to 0, without any communication. So `exact / passes` limits what the others can
reach.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from goal_table import PLAIN_TORCH_STEP, STEP_DENSITIES, STEPS
from kernels import Ratio, conclude, judge, ratio
from torch import Tensor

from sage import registry
from sage.comm.process import ProcessWire
from sage.comm.rendezvous import Place
from sage.comm.spawn import spawn
from sage.comm.wire import Wire
from sage.ops import native
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout

RESULTS = Path(__file__).parent / "results" / "reduce_step.json"
WARM_UP = 8
"""Number of warm-up turns, which are not counted: controllers converge, and buffers are allocated."""
GRADIENTS = 3
"""Number of different gradients, which are used in turn."""
PASSES = "passes"


def contestants(names: Sequence[str], plain: bool) -> dict[str, tuple[str, dict[str, Any], bool]]:
    """Return each contestant by name: its reducer, options, and whether it uses the native kernels.

    `exact` and `passes` are always among them. Those with a density run at each of `STEP_DENSITIES`, with
    `plain` also on plain torch.
    """
    contestants: dict[str, tuple[str, dict[str, Any], bool]] = {"exact": ("exact", {}, True)}
    contestants[PASSES] = (PASSES, {}, True)
    for reducer in names:
        if "density" not in registry.check_options("reducers", reducer, {}):
            contestants[reducer] = (reducer, {}, True)
            continue
        for density in STEP_DENSITIES:
            for runs_native, path in ((True, ""), (False, ", torch path"))[: 1 + plain]:
                contestants[f"{reducer} {density:g}{path}"] = (reducer, {"density": density}, runs_native)
    return contestants


@contextmanager
def kernels(runs_native: bool) -> Iterator[None]:
    """Use the native kernels, or plain torch as with SAGE_NATIVE=0."""
    before = native.MISSING
    native.MISSING = before if runs_native else "SAGE_NATIVE=0"
    try:
        yield
    finally:
        native.MISSING = before


def passes(n: int) -> Callable[[Tensor, Wire], object]:
    """Return the passes over memory that every sparsifier with a residual makes."""
    residual_N = torch.zeros(n)

    def run(grad_N: Tensor, wire: Wire) -> None:
        residual_N.add_(grad_N)
        grad_N.zero_()

    return run


def rank(place: Place, names: Sequence[str], plain: bool, turns: int, out: Path) -> int:
    """Run one rank: reduce in turns; rank 0 writes the slowest rank's seconds of each turn."""
    torch.set_num_threads(1)
    wire = ProcessWire(place, device=torch.device("cpu"))
    with torch.device("meta"):
        model = registry.load("models", "resnet")(depth=18, num_classes=10)
    shapes = [(name, tuple(weight.shape)) for name, weight in model.named_parameters()]
    n = Layout.of(shapes).numel
    torch.manual_seed(place.rank)
    gradients = [torch.randn(n) * torch.randn(n).exp() for _ in range(GRADIENTS)]
    entered = contestants(names, plain)
    reducers: dict[str, Callable[[Tensor, Wire], object]] = {PASSES: passes(n)}
    for name, (reducer, options, _) in entered.items():
        if reducer == PASSES:
            continue
        made = registry.load("reducers", reducer)(**options)
        reducers[name] = ErrorFeedback(made, Layout.of(shapes, made.grouping))
    drawn = random.Random(0)  # the same order on every rank
    grad_N = torch.empty(n)
    seconds: dict[str, list[float]] = {name: [] for name in entered}
    for turn in range(WARM_UP + turns):
        for name in drawn.sample(list(entered), len(entered)):
            grad_N.copy_(gradients[turn % GRADIENTS])
            with kernels(entered[name][2]):
                wire.texts("")  # all ranks start at the same time
                start = time.perf_counter()
                reducers[name](grad_N, wire)
                elapsed = time.perf_counter() - start
            slowest = max(float(text) for text in wire.texts(repr(elapsed)))
            if turn >= WARM_UP:
                seconds[name].append(slowest)
    if place.rank == 0:
        out.write_text(json.dumps({"numel": n, "seconds": seconds}))
    wire.close()
    return 0


def rows(world_size: int, turns: int, names: Sequence[str], *, plain: bool) -> list[dict[str, Any]]:
    """Measure these reducers and `exact` at one world size."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "seconds.json")
        if (
            spawn(partial(rank, names=names, plain=plain, turns=turns, out=out), world_size, method="fork")
            != 0
        ):
            raise SystemExit(f"a rank of {world_size} has failed")
        result = json.loads(out.read_text())
    seconds = result["seconds"]
    rows = []
    for name, (reducer, options, runs_native) in contestants(names, plain).items():
        against: dict[str, Ratio] = {}
        if name != "exact":
            goal = STEPS.get(reducer, {}).get(world_size) if runs_native else None
            against["exact"] = ratio(seconds[name], seconds["exact"], goal)
        if plain and options and runs_native:
            against["torch path"] = ratio(seconds[name], seconds[f"{name}, torch path"], PLAIN_TORCH_STEP)
        median = statistics.median(seconds[name]) * 1e3
        shown = "  ".join(f"{other} {r.median} ({r.low}-{r.high})" for other, r in against.items())
        print(f"W={world_size} {name:24} {median:9.2f} ms  {shown}", flush=True)
        rows.append(
            {
                "world_size": world_size,
                "reducer": name,
                "numel": result["numel"],
                "milliseconds": round(median, 3),
                "turns": turns,
                "times_as_fast_as": {other: asdict(r) for other, r in against.items()},
            }
        )
    return rows


def main() -> int:
    """Measure every world size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--world-sizes", type=int, nargs="+", default=(2, 4))
    parser.add_argument("--reducers", nargs="+", default=tuple(STEPS), help="reducers to compare with exact")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--check", action="store_true", help="fail if a figure is below half of its goal")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    if native.MISSING is not None:
        print(f"no native extension ({native.MISSING}): there is nothing to compare", file=sys.stderr)
        return 2
    load_before = os.getloadavg()[0]
    results = [
        row
        for world_size in given.world_sizes
        for row in rows(world_size, given.turns, given.reducers, plain=True)
    ]
    labels = [f"W={row['world_size']} {row['reducer']}" for row in results]
    conclude(results, load_before, given.output)
    return judge(results, labels, halved=given.check)


if __name__ == "__main__":
    sys.exit(main())
