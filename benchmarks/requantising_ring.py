r"""The error of a ring all-reduce that encodes again at every hop, by the number of ranks.

    sage bench record digits --reducer exact --world-size 16 --epochs 24 --steps 40 --elements 300000 \
        --out ring.trace
    python benchmarks/requantising_ring.py ring.trace

In a ring (as DynamiQ's, arXiv 2602.08923) a share of the vector passes through all ranks: each decodes what
it receives, adds its own gradient, and encodes the sum. So W − 1 codes of partial sums add their errors, and
the mean is encoded once more for all. Two exchanges are drawn beside it: `two-way`, in which every rank
encodes its own share for the share's server, which encodes the mean; and `gather`, in which all ranks' codes
are gathered and nothing is encoded twice. The ranks are simulated: no byte is sent. The error is vNMSE =
Σ‖ĝ − ḡ‖²/Σ‖ḡ‖² over the steps, where ḡ is the mean of the gradients in float64.
"""
# N = elements of the vector, S = of a share, W = ranks

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sage import ops, registry
from sage.bench.recorded import load
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reduction.quantise import Quantiser
from sage.reduction.two_way import cut
from sage.report.svg import PALETTE

FORMATS = ("int8", "mxfp8", "fp4", "mxfp4", "nvfp4", "hadamard+mxfp4")
WORLD_SIZES = (2, 3, 4, 6, 8, 12, 16)
BLOCK = 4096
"""Elements that are transformed together."""

Exchange = Callable[[Quantiser, Sequence[Tensor], Wire], Tensor]


def sent(quantiser: Quantiser, x_S: Tensor, wire: Wire) -> Tensor:
    """The decoded value of a code of a vector."""
    return quantiser.decode(quantiser.encode(x_S, [x_S.numel()], wire), [x_S.numel()])


def shares(grads: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The part of each of W shares, one of every rank."""
    lengths = [sum(share) for share in cut([len(grads[0])], len(grads))]
    return list(zip(*(grad_N.split(lengths) for grad_N in grads), strict=True))


def ring(quantiser: Quantiser, grads: Sequence[Tensor], wire: Wire) -> Tensor:
    """The mean (N) by a ring: share s begins at rank s, and is encoded W times on its way."""
    means = []
    for first, own in enumerate(shares(grads)):
        sum_S = own[first]
        for hop in range(1, len(own)):
            sum_S = sent(quantiser, sum_S, wire) + own[(first + hop) % len(own)]
        means.append(sent(quantiser, sum_S / len(own), wire))
    return torch.cat(means)


def two_way(quantiser: Quantiser, grads: Sequence[Tensor], wire: Wire) -> Tensor:
    """The mean (N) by servers: each rank's share is encoded for its server, and the mean for all."""
    means = []
    for server, own in enumerate(shares(grads)):
        others = [sent(quantiser, x_S, wire) for rank, x_S in enumerate(own) if rank != server]
        means.append(sent(quantiser, torch.stack([own[server], *others]).sum(0) / len(own), wire))
    return torch.cat(means)


def gather(quantiser: Quantiser, grads: Sequence[Tensor], wire: Wire) -> Tensor:
    """The mean (N) of all ranks' decoded codes."""
    return torch.stack([sent(quantiser, grad_N, wire) for grad_N in grads]).mean(0)


EXCHANGES: dict[str, Exchange] = {"ring": ring, "two-way": two_way, "gather": gather}


def error(spec: str, exchange: Exchange, steps: Sequence[Sequence[Tensor]]) -> float:
    """The vNMSE of a format and an exchange over steps, each of which has a gradient of every rank."""
    transform, _, name = spec.rpartition("+")
    quantiser: Quantiser = registry.load("reducers", name)()

    def work(wire: Wire) -> float:
        off = total = 0.0
        for grads in steps:
            given = [x_N.clone() for x_N in grads]
            if transform:  # it is orthonormal, so that the error is the same after the inverse
                given = [ops.hadamard(x_N, [len(x_N)], BLOCK, key=1) for x_N in given]
            mean_N = torch.stack(given).double().mean(0)
            off += float((exchange(quantiser, given, wire) - mean_N).square().sum())
            total += float(mean_N.square().sum())
        return off / total

    return simulate(1, work)[0]


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the error of each format by the number of ranks, one panel for each exchange."""
    style: dict[Any, Any] = {"svg.hashsalt": "sage", "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        panels = figure.subplots(1, len(EXCHANGES), sharey=True)
        for axes, exchange in zip(panels, EXCHANGES, strict=True):
            for spec, colour in zip(FORMATS, PALETTE, strict=True):
                own = [row for row in rows if (row["format"], row["exchange"]) == (spec, exchange)]
                ranks, errors = ([row[name] for row in own] for name in ("ranks", "vnmse"))
                axes.plot(ranks, errors, marker="o", markersize=3, color=colour, label=spec)
            axes.set(title=exchange, xlabel="ranks", xscale="log", yscale="log")
            axes.set_xticks(WORLD_SIZES, [str(size) for size in WORLD_SIZES])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("vNMSE")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False)
        figure.savefig(path, metadata={"Date": None}, facecolor="white")


def main() -> None:
    """Measure every format, exchange and number of ranks; write the table and the figure."""
    parser = argparse.ArgumentParser(description="Measure the error of a ring that encodes at every hop.")
    parser.add_argument("trace", type=Path, help="recorded gradients of as many ranks as are simulated")
    parser.add_argument("--every", type=int, default=4, help="use one in so many steps of the trace")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/requantising_ring.csv"))
    parser.add_argument("--figure", type=Path, default=Path("docs/requantising-ring.svg"))
    given = parser.parse_args()
    trace = load(given.trace)
    rows = []
    for world_size in (size for size in WORLD_SIZES if size <= trace.world_size):
        steps = [
            [trace.gradient(step, rank) for rank in range(world_size)]
            for step in range(0, len(trace), given.every)
        ]
        for spec in FORMATS:
            for name, exchange in EXCHANGES.items():
                vnmse = error(spec, exchange, steps)
                rows.append({"format": spec, "exchange": name, "ranks": world_size, "vnmse": vnmse})
                print(f"{spec:15} {name:8} W={world_size:2} vNMSE {vnmse:.3g}", flush=True)
    with given.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "vnmse": f"{row['vnmse']:.4g}"} for row in rows)
    draw(rows, given.figure)


if __name__ == "__main__":
    main()
