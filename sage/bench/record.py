"""`sage bench record`: train a workload for some steps and keep the gradients."""

from dataclasses import replace
from pathlib import Path

from sage.bench.trace import record, record_run
from sage.config import Config, resolve


def main(what: Config | Path, *, out: Path, steps: int, elements: int) -> int:
    """Record a trace and say what is in it.

    Args:
        what: a run, all whose ranks are simulated here; or the folder of one, of which the steps after its
            newest checkpoint are recorded. The folder stays as it is.
        out: the file to write.
        steps: how many to record.
        elements: keep at most so many of each gradient.

    Raises:
        ValueError: where there is nothing to record.
    """
    check_size(steps, elements)
    if isinstance(what, Path):
        trace = record_run(what, steps=steps, elements=elements)
    else:
        trace = record(resolve(replace(what, steps=steps)), steps=steps, elements=elements)
    trace.save(out)
    shape = " x ".join(map(str, trace.codes_SWN.shape))
    whose = f"{trace.name} under {trace.config['reducer']}"
    print(f"{out}: {whose}, {shape} (steps, ranks, elements of {trace.numel}), from step {trace.first}")
    return 0


def check_size(steps: int, elements: int) -> None:
    """Refuse a trace of nothing."""
    for name, value in (("steps", steps), ("elements", elements)):
        if value < 1:
            raise ValueError(f"--{name} {value}: expected 1 or more")
