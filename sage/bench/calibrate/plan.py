"""What a calibration measures, and for how long."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sage.bench.calibrate.reductions import LEAST
from sage.config import Config

MOST_SECONDS = 1e6


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and for how long.

    Raises:
        ValueError: if a number is out of its range, no reducer is given, or the ranks are simulated.
    """

    config: Config
    """The model, the data and the settings of a step."""
    reducers: Sequence[Config]
    """The same configuration with each of the reducers."""
    seconds: float
    """The time for the collectives; the reducers take the same time in addition."""
    steps: int
    """Least number of steps that count; number of reductions of each reducer."""

    def __post_init__(self) -> None:
        if self.steps < LEAST:
            raise ValueError(f"--steps {self.steps}: expected {LEAST} or more")
        if not 0 < self.seconds <= MOST_SECONDS:
            raise ValueError(f"--seconds {self.seconds:g}: expected more than 0 and at most {MOST_SECONDS:g}")
        if not self.reducers:
            raise ValueError("--reducers: expected one or more, as in --reducers exact bf16 topk")
        if self.config.workers_in_process:
            raise ValueError("--workers-in-process: simulated ranks have no links to measure; leave it out")

    def facts(self) -> Mapping[str, str]:
        """Return what must be the same on all ranks, by name, in addition to the configuration."""
        chosen = [[config.reducer, config.to_dict()["reducer_options"]] for config in self.reducers]
        return {
            "reducers": json.dumps(chosen),
            "seconds": f"{self.seconds:g}",
            "steps to time": str(self.steps),
        }

    def dense(self, world_size: int) -> Config:
        """Return the configuration of the steps that are timed: dense, profiled and unlimited in number."""
        config = replace(
            self.config,
            mount="whole",
            reducer="exact",
            reducer_options={},
            memory=None,
            grouping=None,
            profile=True,
        )
        return unlimited(config, world_size)


def unlimited(config: Config, world_size: int) -> Config:
    """Return the configuration of steps that are unlimited in number and all recorded."""
    return replace(config, world_size=world_size, log_every=1, steps=None, target=None, epochs=1e6)
