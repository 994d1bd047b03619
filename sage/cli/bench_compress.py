"""`sage bench compress`: measure the time and the bytes of every reducer, without a network."""

import shlex
from pathlib import Path
from typing import Any, Literal

import click

from .. import registry
from .command import Command, Option


def compress(*, device: str, **options: Any) -> int:
    """Measure the reducers."""
    from ..bench.compress import main

    given = click.get_current_context().meta["sage.arguments"]
    return main(on=device, command=shlex.join(["sage", "bench", "compress", *given]), **options)


command = Command(
    "compress",
    compress,
    [
        Option(
            "reducers",
            tuple[str, ...],
            tuple(registry.names("reducers")),
            "Reducers, each as NAME[:OPTION=VALUE,...].",
        ),
        Option("mib", tuple[float, ...], (1.0, 10.0, 100.0), "Sizes of N(0, 1) vectors, in MiB."),
        Option(
            "traces", tuple[Path, ...], (), "Traces of `sage bench record`, .npy vectors or folders of them."
        ),
        Option("densities", tuple[float, ...], (0.1, 0.01, 0.001), "The target densities."),
        Option("step", int, 100, "Step of each trace to reduce; the last step of a shorter trace."),
        Option("settle", int, 0, "Untimed reductions before each timed one."),
        Option("rounds", int, 10, "Timed reductions of each case."),
        Option("warmup", int, 3, "Warm-up rounds, which are not recorded."),
        Option("device", Literal["cpu", "cuda"], "cpu", "Device to compute on."),
        Option("threads", int, 1, "Number of torch's threads."),
        Option("seed", int, 0, "Seed of the vectors and of the order in a round."),
        Option("world_size", tuple[int, ...], (1, 2, 4), "Numbers of payloads W to decode into a mean."),
        Option("output", Path | None, None, "Path of the results, without .csv or .svg."),
    ],
    help="Measure the time and the bytes of every reducer, without a network.",
)
