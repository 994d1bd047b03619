"""The bandwidth probe: what this run's links can do, measured on the run's own wire before it starts.

An all-reduce of S bytes takes T = 2(W−1)·α + 2(W−1)/W·S/B: α is the latency of one message, and B the bus
bandwidth, which is what one rank's link carries. A run's manifest keeps both, for the utility model.
"""
# W = world size, N = elements of the vector that is summed

import time
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sage.comm.ledger import ring_all_reduce
from sage.comm.wire import Wire

KIND = "probe"
"""What the ledger books the probe's bytes under."""

LATENCIES, REPEATS = 7, 3

FIRST, MOST = 64 * 1024, 32 * 1024 * 1024
"""Bytes of the first all-reduce, and of the largest."""

# A throttled link lets a burst pass at full speed (128 KB at 100 Mbit/s, say), so a short call flatters it.
# The slower the link, the longer the burst counts: a call must take so long to be believed, or the shorter
# time where it has carried that much.
LONG_SECONDS = 0.2
ENOUGH_SECONDS, ENOUGH_BYTES = 0.005, 4 * 1024 * 1024


def probe(
    wire: Wire, budget_seconds: float = 1.0, device: torch.device | None = None
) -> dict[str, Any] | None:
    """Measure latency and bus bandwidth: all ranks call it, and get the same figures. None for W = 1.

    Args:
        wire: What is measured. Its ledger books every byte as `probe`.
        budget_seconds: No all-reduce is begun that would end after this, as far as the one before tells.
        device: Where the run's gradients live, if not on the CPU.
    """
    if wire.world_size == 1:
        return None
    bench = _Bench(wire, device or torch.device("cpu"))
    bench.sum(4)  # connections are made on first use
    latencies = [bench.sum(4) for _ in range(LATENCIES)]

    size = FIRST
    while True:
        seconds = bench.sum(size)
        larger = min(MOST, 8 * size, int(size * max(1.0, LONG_SECONDS / seconds)) // 4 * 4)
        is_enough = size >= ENOUGH_BYTES and seconds >= ENOUGH_SECONDS
        if larger == size or is_enough or bench.spent + seconds * larger / size > budget_seconds:
            break
        size = larger
    repeats = [seconds]
    while len(repeats) < REPEATS and bench.spent + max(repeats) < budget_seconds:
        repeats.append(bench.sum(size))

    sent, _ = ring_all_reduce(size, wire.world_size)
    return {
        "alpha_seconds": median(latencies) / (2 * (wire.world_size - 1)),
        "bits_per_second": 8 * sent / median(repeats),
        "largest_bytes": size,
        "repeats": len(repeats),
        "spread": (max(repeats) - min(repeats)) / median(repeats),
        "seconds": bench.spent,
    }


class _Bench:
    """Times all-reduces. Every rank gets the same times, and so comes to the same decisions."""

    def __init__(self, wire: Wire, device: torch.device) -> None:
        self._wire, self._device = wire, device
        self._x_N = torch.empty(0)
        self.spent = 0.0
        """Seconds of all of them together."""

    def sum(self, size: int) -> float:
        """How many seconds an all-reduce of `size` bytes takes the slowest rank."""
        if self._x_N.numel() != size // 4:
            self._x_N = torch.ones(size // 4, device=self._device)
        taken = self._timed(self._x_N)
        # This also lets all ranks start the next one together.
        (taken_W,) = self._wire.gather(
            **{KIND: torch.tensor(taken, dtype=torch.float64, device=self._device)}
        )
        slowest = float(taken_W.max())
        self.spent += slowest
        return slowest

    def _timed(self, x_N: Tensor) -> float:
        self._finish()
        start = time.perf_counter()
        self._wire.sum(x_N, kind=KIND)
        self._finish()
        return time.perf_counter() - start

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
