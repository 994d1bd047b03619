"""`sage bench distribution`: fit distributions to recorded gradients, by layer and over training."""

import shlex
from pathlib import Path
from typing import Any, Literal

import click

from .bench_record import size
from .command import Argument, Command, Option


def distribution(*, traces: tuple[Path, ...], **options: Any) -> int:
    """Fit the distributions."""
    from ..bench.distribution.main import main

    given = click.get_current_context().meta["sage.arguments"]
    return main(traces, command=shlex.join(["sage", "bench", "distribution", *given]), **options)


command = Command(
    "distribution",
    distribution,
    [
        Argument(
            "traces",
            Path,
            "Traces of `sage bench record`, .npy vectors or folders of them, or run folders to record now.",
            num_values=-1,
        ),
        *size(),
        Option(
            "at",
            tuple[int, ...],
            (),
            "Steps of each trace to fit, counted from 0; none: at a tenth, at half, and the last.",
        ),
        Option(
            "reducer",
            str,
            "topk:density=0.001",
            "Reducer whose error feedback is replayed from the first step, as NAME[:OPTION=VALUE,...].",
        ),
        Option("sample", int, 2**16, "Maximum number of elements that a fit uses."),
        Option("seed", int, 0, "Seed of the sample."),
        Option(
            "estimator",
            Literal["mle", "sidco"],
            "mle",
            "Maximum likelihood, or SIDCo's closed forms for gamma and generalised Pareto.",
        ),
        Option(
            "output", Path | None, None, "Folder of distribution.html, distribution.md and distribution.csv."
        ),
    ],
    help="Fit distributions to recorded gradients, by layer and over training. They are the normal, Laplace, "
    "and SIDCo's double exponential, double gamma and double generalised Pareto distribution, of gradients "
    "with and without error feedback.",
)
