"""Measures L-GreCo's allocation against uniform settings on gradients recorded from training.

    SAGE_DATA_DIR=<folder with cifar10/ and tinyshakespeare/> python benchmarks/lgreco.py
    python benchmarks/lgreco.py --table        # the results as Markdown

ResNet-18 on CIFAR-10 (16 images per rank instead of 256 and a learning rate of .02 instead of .2, for two
processors) and the GPT of 0.8 M parameters on characters of tiny Shakespeare train from random weights with
`exact`, two ranks, and otherwise the settings of their workloads, for 30 and 120 steps. The gradients of the
last 20 steps are recorded, as float16 times a power of two. Every method then reduces them without error
feedback, so that all see the same signals: with uniform settings, and with an allocation at the 11th of these
steps, which is of the sum of rank 0's ten gradients before it.

`sum_norms` and `sum_vnmse` are the errors of that sum, reduced alone with the settings of the last step (by
`powersgd` six times, so that its factors converge); `norms` and `vnmse` those of the ten steps that follow.
The norms are the error that L-GreCo limits: the sum over layers of the norm of ĝ − ḡ, over the sum of the
norms of ḡ, where ĝ is the reduced and ḡ the exact mean. vNMSE is Σ‖ĝ − ḡ‖² / Σ‖ḡ‖². The bytes are rank 0's
payload in the ten steps, with the allocation.
"""
# N = elements of the flat vector, S = steps, W = ranks

import argparse
import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sage import registry
from sage.bench.trace import record
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import load, resolve
from sage.data.dataset import data_root
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import MAX_ELEMENTS, Layout
from sage.train.run import build_model

RESULTS = Path(__file__).parent / "results" / "lgreco.csv"
RANKS = 2
RECORDED, EVERY = 20, 10
WORKLOADS: dict[str, tuple[dict[str, Any], int]] = {
    "resnet18-cifar10": ({"batch_size": 16, "lr": 0.02, "lr_scale": 1.0}, 30),
    "gpt-char-cpu-shakespeare": ({}, 120),
}
"""Settings that differ from the workload's, and the number of training steps."""
METHODS: dict[str, dict[str, Any]] = {
    "topk": {"density": 0.01},
    "powersgd": {"rank": 4},
    "qsgd": {"levels": 7},
}
SETTING = {"topk": "density_G", "powersgd": "rank_G", "qsgd": "level_G"}
"""The reducers' buffers of the settings."""
ALLOCATIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "lgreco": {"allocation": "lgreco", "allocation_every": EVERY},
    "lgreco, α = .8": {"allocation": "lgreco", "allocation_every": EVERY, "allocation_alpha": 0.8},
    "lgreco, square": {"allocation": "lgreco", "allocation_every": EVERY, "allocation_error": "square"},
}


@dataclass(frozen=True)
class Row:
    """The result of one method with one allocation."""

    workload: str
    reducer: str
    allocation: str
    bytes_a_step: int
    sum_norms: float
    sum_vnmse: float
    norms: float
    vnmse: float


def recorded(workload: str) -> tuple[Layout, list[list[Tensor]]]:
    """Train, and return the layout and the gradient (N) of each of the last steps and ranks."""
    changes, steps = WORKLOADS[workload]
    config = load(workload, overrides={"reducer": "exact", "world_size": RANKS, "mount": "whole", **changes})
    config = resolve(replace(config, steps=steps))
    trace = record(config, steps=steps, elements=MAX_ELEMENTS)
    data = registry.load("datasets", config.data)(data_root(config.data_root), **config.data_options)
    shapes: dict[str, Sequence[int]] = {}

    def build(wire: Wire) -> None:
        model = build_model(config, data, wire, torch.device("cpu"))
        shapes.update({name: tuple(p.shape) for name, p in model.named_parameters()})

    simulate(1, build)
    layout = Layout.of([(name, shapes[name]) for name, _ in trace.sizes], "layer")
    last = range(steps - RECORDED, steps)
    return layout, [[trace.gradient(step, rank) for rank in range(RANKS)] for step in last]


def measured(workload: str, layout: Layout, grads_SW: list[list[Tensor]]) -> list[Row]:
    """Reduce the gradients by every method with every allocation."""
    rows = []
    sum_N = torch.stack([grads_W[0] for grads_W in grads_SW[:EVERY]]).sum(0)
    for name, options in METHODS.items():
        for allocation, more in ALLOCATIONS.items():
            means, sent, settings = reduced(name, {**options, **more}, layout, grads_SW)
            exact = [torch.stack(grads_W).mean(0) for grads_W in grads_SW[EVERY:]]
            off = [mean_N - exact_N for mean_N, exact_N in zip(means, exact, strict=True)]
            lost_N = sum_N - of_sum(name, {**options, **more}, layout, sum_N, settings)
            row = Row(
                workload,
                name,
                allocation,
                round(sent / len(off)),
                norms(lost_N, layout) / norms(sum_N, layout),
                square(lost_N) / square(sum_N),
                sum(norms(x_N, layout) for x_N in off) / sum(norms(x_N, layout) for x_N in exact),
                sum(map(square, off)) / sum(map(square, exact)),
            )
            print(row, flush=True)
            rows.append(row)
    return rows


def reduced(
    name: str, options: dict[str, Any], layout: Layout, grads_SW: list[list[Tensor]]
) -> tuple[list[Tensor], int, Tensor | None]:
    """Reduce all steps; return the means and rank 0's bytes from the 11th on, and the last settings (G)."""

    def work(wire: Wire) -> tuple[list[Tensor], int, Tensor | None]:
        reducer = registry.load("reducers", name)(**options)
        feedback = ErrorFeedback(reducer, layout, memory="none")
        found, before = [], wire.ledger.copy()
        for step, grads_W in enumerate(grads_SW):
            if step == EVERY:
                before = wire.ledger.copy()
            mean_N = feedback(grads_W[wire.rank].clone(), wire).mean_N
            found.append(mean_N.clone() if wire.rank == 0 and step >= EVERY else mean_N[:0])
        settings = reducer.get_buffer(SETTING[name]) if reducer.allocation is not None else None
        return found[EVERY:], sum(wire.ledger.since(before).payload.values()), settings

    return simulate(RANKS, work)[0]


def of_sum(
    name: str, options: dict[str, Any], layout: Layout, sum_N: Tensor, settings: Tensor | None
) -> Tensor:
    """Reduce the sum alone with these settings; return what is sent of it (N)."""

    def work(wire: Wire) -> Tensor:
        later = {"allocation_every": 1000} if settings is not None else {}
        reducer = registry.load("reducers", name)(**{**options, **later})
        feedback = ErrorFeedback(reducer, layout, memory="none")
        if settings is not None:
            reducer.get_buffer(SETTING[name]).copy_(settings)
        for _ in range(5 if name == "powersgd" else 0):
            feedback(sum_N.clone(), wire)
        return feedback(sum_N.clone(), wire).mean_N

    return simulate(1, work)[0]


def square(x_N: Tensor) -> float:
    """Return the squared norm."""
    return float(x_N.double().square().sum())


def norms(x_N: Tensor, layout: Layout) -> float:
    """Return the sum of the layers' norms."""
    return sum(float(x_N[a:b].double().norm()) for a, b in layout.groups)


def read(path: Path = RESULTS) -> list[Row]:
    """Read the results."""
    with path.open(newline="") as file:
        return [
            Row(
                row["workload"],
                row["reducer"],
                row["allocation"],
                int(row["bytes_a_step"]),
                *(float(row[name]) for name in ("sum_norms", "sum_vnmse", "norms", "vnmse")),
            )
            for row in csv.DictReader(file)
        ]


def table(rows: Sequence[Row]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| workload | reducer | allocation | bytes per step and rank | norms of the sum | vNMSE of the sum "
        "| norms of the next steps | vNMSE of the next steps |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        errors = " | ".join(f"{x:.4f}" for x in (row.sum_norms, row.sum_vnmse, row.norms, row.vnmse))
        lines.append(
            f"| `{row.workload}` | `{row.reducer}` | {row.allocation} | {row.bytes_a_step:,} | {errors} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and write the results, or print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the results")
    if parser.parse_args().table:
        print(table(read()))
        return
    torch.set_num_threads(1)
    rows = [row for workload in WORKLOADS for row in measured(workload, *recorded(workload))]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
