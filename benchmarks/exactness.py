"""Measures what it costs that `quantile` is exact at a density, and by how much a sampled λ would miss.

    python benchmarks/exactness.py --density 0.01

Prints the CPU time of the thread for a selection with a given threshold (`plain`), for `quantile` as it is
(`exact`) and with λ from a sample as at densities of 1/32 and above (`sampled`), interleaved, each with its
own residual; then the number of selected elements over the target with `sampled`. One thread.
"""

import argparse
import statistics
import time

import torch

from sage import ops
from sage.reduction.controllers import quantile

WARM_UP = 12
"""Steps that are not counted, in which the controllers converge."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--elements", type=int, default=11_173_962)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    gradients = [torch.randn(args.elements) * torch.randn(args.elements).exp() for _ in range(3)]
    residuals = {name: torch.zeros(args.elements) for name in ("plain", "exact", "sampled")}
    controllers = {"exact": quantile.Quantile(), "sampled": quantile.Quantile()}
    limits = {"exact": quantile.SAMPLED_FROM, "sampled": 0.0}
    seconds: dict[str, list[float]] = {name: [] for name in residuals}
    shares = []
    for step in range(WARM_UP + args.steps):
        grad_N = gradients[step % 3]
        for name, residual_N in residuals.items():
            threshold = float(controllers["exact"].threshold)
            start = time.thread_time()
            if name == "plain":
                ops.take_above(grad_N, residual_N, threshold)
            else:
                quantile.SAMPLED_FROM = limits[name]
                _, at_K = controllers[name].take(grad_N, residual_N, args.density)
                if name == "sampled" and step >= WARM_UP:
                    shares.append(at_K.numel() / (args.density * args.elements))
            if step >= WARM_UP:
                seconds[name].append(time.thread_time() - start)
    for name, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        median = 1e3 * statistics.median(taken)
        print(f"{name:8} {median:6.2f} ms, {middle:.2f} ({low:.2f} to {high:.2f}) of plain")
    print(f"sampled: {statistics.mean(shares):.3f} of the target, standard deviation", end=" ")
    print(f"{statistics.stdev(shares):.3f}, {min(shares):.3f} to {max(shares):.3f}")


if __name__ == "__main__":
    main()
