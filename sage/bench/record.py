"""`sage bench record`: train a workload for some steps and keep the gradients."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sage.bench.trace import record
from sage.config import resolve
from sage.flags import parse_run


def main(argv: Sequence[str]) -> int:
    """Record a trace and say what is in it."""
    parser = argparse.ArgumentParser(
        prog="sage bench record",
        description="Record the gradients of a run, all its ranks simulated here.",
        epilog="Everything else is a flag of `sage run`: the workload first, then --steps, --world-size, ...",
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--elements", type=int, default=2**18, help="keep at most so many of each gradient")
    given, rest = parser.parse_known_args(argv)
    if given.elements < 1:
        raise ValueError(f"--elements {given.elements}: expected 1 or more")
    config, _ = parse_run(rest)
    config = resolve(replace(config, steps=config.steps or 120))
    torch.set_num_threads(config.threads)
    trace = record(config, elements=given.elements)
    trace.save(given.out)
    shape = " x ".join(map(str, trace.codes_SWN.shape))
    print(
        f"{given.out}: {trace.name} under {config.reducer}, {shape} (steps, ranks, elements of {trace.numel})"
    )
    return 0
