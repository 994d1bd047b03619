"""The device under test (a GPU, or the CPU in a rehearsal), the sizes of its inputs, and its timer."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """The device of the sections, and the sizes of their inputs."""

    rehearsal: bool

    @property
    def kind(self) -> str:
        """`cuda`, or `cpu` in a rehearsal."""
        return "cpu" if self.rehearsal else "cuda"

    @property
    def torch(self) -> torch.device:
        """The torch device."""
        return torch.device(self.kind)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of the vectors whose speed is measured."""
        return (10_000,) if self.rehearsal else (1_000_000, 10_000_000, 100_000_000)

    @property
    def densities(self) -> tuple[float, ...]:
        """Densities at which selections are measured."""
        return (0.01,) if self.rehearsal else (0.1, 0.01, 0.001)

    @property
    def repeats(self) -> int:
        """Timed calls of each candidate."""
        return 2 if self.rehearsal else 20

    def sync(self) -> None:
        """Wait until the device is idle."""
        if not self.rehearsal:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds of one call, on a GPU by events."""
        if self.rehearsal:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.sync()
        begin.record()
        work()
        end.record()
        self.sync()
        return begin.elapsed_time(end) / 1e3

    def medians(self, candidates: Sequence[tuple[str, Callable[[], object]]]) -> dict[str, float]:
        """Return the median seconds of each candidate; they alternate, after two warm-up calls of each."""
        seconds: dict[str, list[float]] = {name: [] for name, _ in candidates}
        for repeat in range(2 + self.repeats):
            for name, work in candidates:
                spent = self.seconds(work)
                if repeat >= 2:
                    seconds[name].append(spent)
        return {name: statistics.median(times) for name, times in seconds.items()}


def describe(device: Device) -> dict[str, object]:
    """Return the card and the versions, for the head of the results."""
    if device.rehearsal:
        return {"device": "cpu (rehearsal)", "torch": torch.__version__}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
    }
