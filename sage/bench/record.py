"""`sage bench record`: train a workload for some steps and record the gradients."""

from dataclasses import replace
from pathlib import Path

from sage import storage
from sage.bench.trace import record, record_run
from sage.config import Config, resolve


def main(what: Config | Path, *, out: Path, steps: int, elements: int) -> int:
    """Record a trace and print its content.

    Args:
        what: a configuration, whose ranks are all simulated in this process; or a run folder, of which the
            steps after the newest checkpoint are recorded. The folder is not changed.
        out: the file to write.
        steps: number of steps to record.
        elements: maximum number of elements kept of each gradient.

    Raises:
        ValueError: an argument is out of its range, or the run has too few steps left.
        sage.storage.NotWritten: (an OSError) the file cannot be written; raised before the recording.
    """
    check_size(steps, elements)
    storage.check_writable(out.parent)
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
    """Refuse an empty trace."""
    for name, value in (("steps", steps), ("elements", elements)):
        if value < 1:
            raise ValueError(f"--{name} {value}: expected 1 or more")
