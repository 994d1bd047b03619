"""`sage bench record`: train a workload for some steps and keep the gradients."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sage.bench.trace import Trace, is_run, record, record_run
from sage.cli.flags import parse_run
from sage.cli.parser import Parser
from sage.config import resolve


def main(argv: Sequence[str]) -> int:
    """Record a trace and say what is in it."""
    parser = Parser(
        prog="sage bench record",
        description="Record the gradients of a run, all its ranks simulated here.",
        epilog="The workload stands first; everything else is a flag of `sage run`. Or the folder of a run "
        "stands first and alone: the steps after its newest checkpoint are recorded, and it stays as it is.",
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    add_size(parser)
    given, rest = parser.parse_known_args(argv)
    check_size(given)
    trace = _record(rest, given.steps, given.elements)
    trace.save(given.out)
    shape = " x ".join(map(str, trace.codes_SWN.shape))
    whose = f"{trace.name} under {trace.config['reducer']}"
    print(f"{given.out}: {whose}, {shape} (steps, ranks, elements of {trace.numel}), from step {trace.first}")
    return 0


def _record(asked: Sequence[str], steps: int, elements: int) -> Trace:
    if asked and is_run(folder := Path(asked[0])):
        if asked[1:]:
            raise ValueError(f"{folder} is a run and has its configuration: leave out {' '.join(asked[1:])}")
        return record_run(folder, steps=steps, elements=elements)
    config, _ = parse_run(asked)
    return record(resolve(replace(config, steps=steps)), steps=steps, elements=elements)


def add_size(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags that say how large a trace is made."""
    parser.add_argument("--steps", type=int, default=120, help="how many to record")
    parser.add_argument("--elements", type=int, default=2**18, help="keep at most so many of each gradient")


def check_size(given: argparse.Namespace) -> None:
    """Refuse a trace of nothing."""
    for name in ("steps", "elements"):
        if getattr(given, name) < 1:
            raise ValueError(f"--{name} {getattr(given, name)}: expected 1 or more")
