"""`sage calibrate`: measures what `sage predict` needs, on the ranks that it is started with."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from sage import storage
from sage.bench.calibrate import ranks
from sage.bench.calibrate.from_runs import from_runs
from sage.bench.calibrate.measurement import measure
from sage.bench.calibrate.plan import Plan
from sage.bench.calibrate.summary import summary
from sage.comm.process import ProcessWire
from sage.comm.wire import Wire
from sage.exit_status import FAILED, message
from sage.output.units import printable
from sage.predict.calibration import Calibration
from sage.predict.calibration import write as write_calibration
from sage.records.progress import Display

NAME = "sage calibrate"


def main(plan: Plan, output: Path) -> int:
    """Measure, write the calibration and print a summary; returns the exit status.

    0: finished; 1: failed, or a reducer failed and is not in the file; 2: would fail again; 75: stopped.

    Raises:
        ValueError: the configuration or the environment is invalid.
    """
    return ranks.run(NAME, plan.config, plan.facts(), partial(_work, plan, output))


def main_from_runs(folders: Sequence[Path], output: Path) -> int:
    """Write a calibration of finished runs, and print it and what it lacks; returns the exit status, 0.

    Raises:
        ValueError: the runs give no calibration, or the file cannot be written.
        OSError: the files of the data set cannot be read.
    """
    if reason := _refusal(output):
        raise ValueError(reason)
    calibration, lacks = from_runs(folders)
    _write(output, calibration)
    print(summary(calibration), end="", flush=True)
    print(printable(f"{NAME}: {lacks}"), file=sys.stderr)
    return 0


def _work(plan: Plan, output: Path, wire: ProcessWire, device: torch.device) -> int:
    """Measure on one rank; rank 0 writes the file.

    Raises:
        ValueError: there is a single rank, or the file cannot be written; raised before the measurement.
    """
    if wire.world_size == 1:
        raise ValueError("world_size is 1; collectives need 2 ranks or more, as with --world-size 2")
    check_output(output, wire)
    with Display(NAME, enabled=wire.rank == 0) as display:
        calibration, notes = measure(plan, wire, device, display)
        if wire.rank == 0:
            _write(output, calibration)
            for text in [*notes.left_out, *notes.failed, f"written to {output}"]:
                display.print(text)
    if wire.rank == 0:
        print(summary(calibration), end="", flush=True)
    return FAILED if notes.failed else 0


def check_output(output: Path, wire: Wire) -> None:
    """Refuse a file that rank 0 cannot write, before the measurement.

    Raises:
        ValueError: on every rank.
    """
    if reason := wire.texts(_refusal(output) if wire.rank == 0 else "")[0]:
        raise ValueError(reason)


def _refusal(output: Path) -> str:
    """Return why a file cannot be written; "" if it can be."""
    if output.is_dir():
        return f"--output {output}: it is a folder; name a file, as in {output / 'calibration.json'}"
    try:
        storage.check_writable(output.parent)
    except OSError as error:
        return message(error)
    return ""


def _write(output: Path, calibration: Calibration) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    write_calibration(output, calibration)
