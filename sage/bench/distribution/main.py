"""`sage bench distribution`: fit distributions to recorded gradients, by layer and over training."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from sage import storage
from sage.bench.compress import provenance
from sage.bench.distribution import tables
from sage.bench.distribution.families import Estimator
from sage.bench.distribution.measure import WHOLE, Row, rows_of
from sage.bench.distribution.page import page
from sage.bench.distribution.words import findings
from sage.bench.gradients import Gradients
from sage.bench.record import check_size
from sage.bench.recorded import load_or_record
from sage.bench.repetitions import Case, cases_of
from sage.report.published.text import columns


def main(
    traces: Sequence[Path],
    *,
    steps: int,
    elements: int,
    at: Sequence[int],
    reducer: str,
    sample: int,
    seed: int,
    estimator: Estimator,
    output: Path | None,
    command: str,
) -> int:
    """Fit the families, print the distances by step, and write page, tables and CSV if a folder is given.

    Args:
        traces: files of `sage bench record`, .npy vectors, folders of them, or run folders to record now.
        steps: number of steps to record of a run folder.
        elements: maximum number of elements kept of its gradients.
        at: indices of the steps to fit in each trace; empty: a tenth, half and all of the trace.
        reducer: the reducer whose error feedback is replayed, as NAME[:OPTION=VALUE,...].
        sample: maximum number of elements that a fit uses.
        seed: seed of that sample.
        estimator: how parameters are estimated.
        output: the folder of distribution.html, .md and .csv.
        command: the command line, for the provenance.

    Raises:
        ValueError: an argument or a trace cannot be used.
        sage.storage.NotWritten: (an OSError) the output cannot be written; raised before the first fit.
    """
    check_size(steps, elements)
    if sample < 2:
        raise ValueError(f"--sample {sample}: expected 2 or more")
    if any(step < 0 for step in at):
        raise ValueError(
            f"--at {' '.join(map(str, at))}: expected steps of 0 or more, counted from the first"
        )
    if output:
        storage.check_writable(output)
    case = _case(reducer)
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    rows: list[Row] = []
    for path in traces:
        trace = load_or_record(path, steps=steps, elements=elements)
        if late := [step for step in at if step >= len(trace)]:
            raise ValueError(f"--at {late[0]}: {path} has {len(trace)} steps; the last is {len(trace) - 1}")
        name = _name(trace, path, {row.trace for row in rows})
        wanted = sorted(set(at)) or moments(len(trace))
        own = list(rows_of(trace, name, wanted, case, sample=sample, seed=seed, how=estimator))
        rows += own
        show(name, own)
        if output:  # after each trace, because the next may take long
            head = provenance(command, "cpu", load_before)
            head |= {"estimator": estimator, "error feedback": case.name, "sample": sample, "seed": seed}
            write(rows, estimator, head, output)
    return 0


def moments(num_steps: int) -> list[int]:
    """Three steps over a trace: at a tenth, at half, and the last.

    >>> moments(120), moments(1)
    ([12, 60, 119], [0])
    """
    return sorted({num_steps // 10, num_steps // 2, num_steps - 1})


def show(name: str, rows: Sequence[Row]) -> None:
    """Print the findings of a trace and the KS distances by step."""
    table = tables.distances([row for row in rows if row.layer == WHOLE])
    print(f"{name}:", *findings(rows), "", sep="\n")
    print(*columns(table.heading, table.lines, right=table.heading[:-1]), "", sep="\n", flush=True)


def write(rows: Sequence[Row], estimator: Estimator, head: dict[str, object], folder: Path) -> None:
    """Write the page, the tables and the CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_text(folder / "distribution.html", page(rows, head))
    storage.write_text(folder / "distribution.md", tables.markdown(rows, head))
    tables.write_csv(rows, estimator, head, folder / "distribution.csv")


def _case(spec: str) -> Case:
    cases = cases_of(spec, [0.001])
    return cases[0]


def _name(trace: Gradients, path: Path, taken: set[str]) -> str:
    """A name for tables that no other trace has."""
    name = trace.name + (f", from step {trace.first}" if trace.first else "")
    if name not in taken:
        return name
    if (name := f"{name} ({path})") not in taken:
        return name
    raise ValueError(f"{path} is given twice; leave one out")
