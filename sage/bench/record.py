"""`sage bench record`: train a workload for some steps and record the gradients."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sage import storage
from sage.bench import npy
from sage.bench.trace import record, record_run
from sage.config import Config, resolve

Format = Literal["trace", "npy"]


def main(what: Config | Path, *, out: Path, steps: int, elements: int, format: Format = "trace") -> int:
    """Record a trace or .npy vectors, and print their content.

    Args:
        what: a configuration, whose ranks are all simulated in this process; or a run folder, of which the
            steps after the newest checkpoint are recorded. The folder is not changed.
        out: the file to write; with the format npy, the folder.
        steps: number of steps to record.
        elements: maximum number of elements kept of each gradient.
        format: one file for all steps and ranks, or a float32 vector as .npy for each step and rank.

    Raises:
        ValueError: an argument is out of its range, or the run has too few steps left.
        sage.storage.NotWritten: (an OSError) the file cannot be written; raised before the recording.
    """
    check_size(steps, elements)
    how: dict[str, Any] = {"steps": steps, "elements": elements}
    if format == "npy":
        npy.check_empty(out)
        storage.check_writable(out)
        workload = _workload(what)
        out.mkdir(parents=True, exist_ok=True)
        how["each"] = partial(npy.write, out, workload)
    elif out.suffix == ".npy":
        raise ValueError(f"--out {out}: a trace is not a .npy file; add --format npy and give a folder")
    else:
        storage.check_writable(out.parent)
    if isinstance(what, Path):
        trace = record_run(what, **how)
    else:
        trace = record(resolve(replace(what, steps=steps)), **how)
    if format == "trace":
        trace.save(out)
    shape = " x ".join(map(str, trace.codes_SWN.shape))
    whose = f"{trace.name} under {trace.config['reducer']}"
    print(f"{out}: {whose}, {shape} (steps, ranks, elements of {trace.numel}), from step {trace.first}")
    return 0


def _workload(what: Config | Path) -> str:
    if isinstance(what, Config):
        return what.workload
    return str(storage.read_json(what / "config.json", storage.CONFIG)["workload"])


def check_size(steps: int, elements: int) -> None:
    """Refuse an empty trace."""
    for name, value in (("steps", steps), ("elements", elements)):
        if value < 1:
            raise ValueError(f"--{name} {value}: expected 1 or more")
