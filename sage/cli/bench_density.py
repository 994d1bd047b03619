"""`sage bench density`: replay recorded gradients under each density controller."""

from pathlib import Path
from typing import Any, Literal

from ..bench.rules import RULES
from .bench_record import size
from .command import Argument, Command, Option

Rules: Any = tuple[Literal[tuple(RULES)], ...]  # type: ignore[misc]


def density(*, traces: tuple[Path, ...], **options: Any) -> int:
    """Replay the traces."""
    from ..bench.density import main

    return main(traces, **options)


command = Command(
    "density",
    density,
    [
        Argument(
            "traces",
            Path,
            "Traces of `sage bench record`, folders of .npy vectors, or run folders to record now.",
            num_values=-1,
        ),
        *size(),
        Option("densities", tuple[float, ...], (0.1, 0.01, 0.001), "The target densities."),
        Option("rules", Rules, tuple(RULES), "The controllers to compare."),
        Option("exchange", str, "uneven", "How selections are sent, as in `sage run --exchange`."),
        Option("output", Path | None, None, "The folder for density.md, density.csv and density.svg."),
        Option("drawn", Rules, (), "The controllers in the figure; default: all."),
    ],
    help="Replay recorded gradients under each density controller, and measure the density. Error feedback "
    "is as in training, on simulated ranks; no model, no data and no network are involved.",
)
