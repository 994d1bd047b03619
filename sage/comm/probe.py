"""The bandwidth probe: measures latency and bandwidth with the run's own communicator before training.

An all-reduce of S bytes takes T = 2(W−1)·α + 2(W−1)/W·S/B, where α is the latency of one message and B is the
bus bandwidth, that is the bandwidth of one rank's link. Both are stored in the run's manifest, for the
utility model.
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
"""The kind of the probe's bytes in the ledger."""

LATENCIES, REPEATS = 7, 3

FIRST, MOST = 64 * 1024, 32 * 1024 * 1024
"""Sizes in bytes of the first and of the largest all-reduce."""

# A rate-limited link passes a burst at full speed (for example 128 KB at 100 Mbit/s), so a short call
# overestimates its bandwidth. On a slower link the burst distorts longer calls too. Therefore a call counts
# only if it takes LONG_SECONDS, or ENOUGH_SECONDS with at least ENOUGH_BYTES.
LONG_SECONDS = 0.2
ENOUGH_SECONDS, ENOUGH_BYTES = 0.005, 4 * 1024 * 1024


def probe(
    wire: Wire, budget_seconds: float = 1.0, device: torch.device | None = None
) -> dict[str, Any] | None:
    """Measure latency and bus bandwidth. This is a collective call with the same result on every rank.

    Returns None for W = 1.

    Args:
        wire: The communicator to measure. Its ledger records every byte as `probe`.
        budget_seconds: No all-reduce starts if the previous one predicts that it would end after this time.
        device: Device of the run's gradients; the CPU by default.
    """
    if wire.world_size == 1:
        return None
    bench = _Bench(wire, device or torch.device("cpu"))
    bench.sum(4)  # the first call opens the connections
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
    """Times all-reduces. All ranks get the same times, and therefore make the same decisions."""

    def __init__(self, wire: Wire, device: torch.device) -> None:
        self._wire, self._device = wire, device
        self._x_N = torch.empty(0)
        self.spent = 0.0
        """Total seconds of all calls."""

    def sum(self, size: int) -> float:
        """Return the seconds of an all-reduce of `size` bytes on the slowest rank."""
        if self._x_N.numel() != size // 4:
            self._x_N = torch.ones(size // 4, device=self._device)
        elapsed = self._timed(self._x_N)
        # The gather also synchronises the ranks before the next call.
        (taken_W,) = self._wire.gather(
            **{KIND: torch.tensor(elapsed, dtype=torch.float64, device=self._device)}
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
