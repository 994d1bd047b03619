"""`sage bench compress`: time and size of compressing and decompressing a gradient, without a network."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from sage import storage
from sage.bench import figure
from sage.bench.repetitions import Row, Spread, cases_of, inputs, measure
from sage.ops import native
from sage.output.units import percent, size
from sage.records.manifest import manifest

TITLES = (
    "input",
    "density",
    "reducer",
    "sent/k",
    "payload",
    "of dense",
    "compress, ms",
    "MB/s",
    "decompress, ms",
    "W payloads, ms",
)
"""The table's columns."""
SPREAD = tuple(field.name for field in fields(Spread))
FIELDS = (
    "input",
    "elements",
    "reducer",
    "density",
    "rounds",
    "error",
    "sent",
    "sent_over_k",
    "payload_bytes",
    "payload_over_dense",
    "megabytes_per_second",
    *(f"compress_seconds_{name}" for name in SPREAD),
    *(f"decompress_seconds_{name}" for name in SPREAD),
    "decode_world_sizes",
    "decode_seconds_first",
    "decode_seconds_each",
)
"""The CSV's columns."""


def main(
    *,
    reducers: Sequence[str],
    mib: Sequence[float],
    traces: Sequence[Path],
    densities: Sequence[float],
    step: int,
    settle: int,
    rounds: int,
    warmup: int,
    on: str,
    threads: int,
    seed: int,
    world_size: Sequence[int],
    output: Path | None,
    command: str,
) -> int:
    """Measure every case on every input; returns 1 if a reducer failed, else 0.

    Args:
        reducers: reducers with options, each NAME[:OPTION=VALUE,...].
        mib: sizes of N(0, 1) vectors in MiB.
        traces: files of `sage bench record`, .npy vectors, or folders of them.
        densities: target densities, for reducers that have one.
        step: the step of each trace; its last step if it is shorter.
        settle: number of untimed reductions before each timed one.
        rounds: number of timed reductions of each case.
        warmup: number of rounds before these, whose times are dropped.
        on: the device, "cpu" or "cuda".
        threads: number of torch's threads.
        seed: seed of the vectors and of the order.
        world_size: numbers of payloads W that are decoded, 1 first.
        output: a path to which .csv and .svg are appended; None: write no files.
        command: the command line, for the head of the CSV.

    Raises:
        ValueError: an argument is out of its range.
        sage.storage.NotWritten: (an OSError) the output cannot be written; raised before the measurement.
    """
    given = {"step": step, "settle": settle, "rounds": rounds, "warmup": warmup, "threads": threads}
    for name, least in (("step", 0), ("settle", 0), ("rounds", 2), ("warmup", 0), ("threads", 1)):
        if given[name] < least:
            raise ValueError(f"--{name} {given[name]}: expected {least} or more")
    if on == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; omit --device to measure on the CPU")
    if any(not 0 < number < math.inf for number in mib):
        raise ValueError(f"--mib {' '.join(f'{number:g}' for number in mib)}: expected sizes above 0")
    if not mib and not traces:
        raise ValueError("no input: give --mib a size, or --traces a file of `sage bench record`")
    if not world_size or any(count < 1 for count in world_size):
        numbers = " ".join(map(str, world_size))
        raise ValueError(f"--world-size {numbers}: expected one or more numbers of ranks, each 1 or more")
    if output:
        storage.check_writable(output.parent)
    device = torch.device(on)
    cases = [case for spec in reducers for case in cases_of(spec, densities)]
    torch.set_num_threads(threads)
    load_before = os.getloadavg()[0]
    rows: list[Row] = []
    for item in inputs(mib, traces, step, settle, seed, device):
        new = measure(item, cases, rounds, warmup, seed, sorted(set(world_size)))
        print("" if rows else heading(), *map(line, new), sep="", end="", flush=True)
        rows += new
    if output:
        head = provenance(command, on, load_before)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_csv(head, rows, output.with_name(output.name + ".csv"))
        picture = figure.throughput_by_reducer(rows)
        storage.write_text(output.with_name(output.name + ".svg"), picture)
    return 1 if any(row.error for row in rows) else 0


# Output.


def heading() -> str:
    """The first two lines of the Markdown table."""
    return f"| {' | '.join(TITLES)} |\n|---|---:|---|{'---:|' * 7}\n"


def line(row: Row) -> str:
    """A line of the table; times are medians with quartiles."""
    density = row.case.density
    row_values = [row.input, "–" if density is None else f"{density:g}", f"`{row.case.name}`"]
    if row.error:
        row_values += ["–", "–", "–", f"failed: {row.error.replace('|', '/')}", "–", "–", "–"]
    else:
        row_values += [
            "–" if row.sent_over_k is None else f"{row.sent_over_k:.3f}",
            size(row.payload),
            percent(row.payload / row.dense),
            _milliseconds(row.compress),
            f"{row.megabytes_per_second:.0f}",
            _milliseconds(row.decompress),
            "{:.3g} + {:.3g}·W".format(*(1e3 * value for value in row.decode_fit)),
        ]
    return f"| {' | '.join(row_values)} |\n"


def _milliseconds(seconds: Spread) -> str:
    low, median, high = (f"{1e3 * value:.3g}" for value in (seconds.low, seconds.median, seconds.high))
    return f"{median} ({low}–{high})"


def values(row: Row) -> dict[str, Any]:
    """A row of the CSV, without unknown values."""
    row_values: dict[str, Any] = {
        "input": row.input,
        "elements": row.elements,
        "reducer": row.case.name,
        "density": row.case.density,
        "rounds": len(row.rounds),
        "error": row.error,
    }
    if row.error:
        return row_values
    return row_values | {
        "sent": row.sent,
        "sent_over_k": row.sent_over_k,
        "payload_bytes": row.payload,
        "payload_over_dense": f"{row.payload / row.dense:.6g}",
        "megabytes_per_second": f"{row.megabytes_per_second:.6g}",
        **{f"compress_seconds_{name}": f"{getattr(row.compress, name):.6g}" for name in SPREAD},
        **{f"decompress_seconds_{name}": f"{getattr(row.decompress, name):.6g}" for name in SPREAD},
        "decode_world_sizes": " ".join(map(str, row.decode)),
        "decode_seconds_first": f"{row.decode_fit[0]:.6g}",
        "decode_seconds_each": f"{row.decode_fit[1]:.6g}",
    }


def write_csv(head: Mapping[str, object], rows: Sequence[Row], path: Path) -> None:
    """Write the results, after lines of `# name: value` with their provenance."""
    storage.write_csv(
        path, map(values, rows), FIELDS, head=[f"# {name}: {value}" for name, value in head.items()]
    )


def provenance(command: str, device: str, load_before: float) -> dict[str, object]:
    """The machine, versions and settings of a measurement."""
    row_values = manifest({}, {})
    machine, git = row_values["machine"], row_values["git"]
    return {
        "command": command,
        "commit": f"{git['commit']}{', and changes that are not in it' if git['dirty'] else ''}",
        "time": row_values["time"],
        "machine": f"{machine['cores']} x {machine['cpu']}",
        "device": ", ".join(machine["gpus"]) if device == "cuda" else "cpu",
        "torch": row_values["versions"]["torch"],
        "threads": torch.get_num_threads(),
        "native extension": "yes" if native.MISSING is None else f"no, {native.MISSING}",
        "load average": f"{load_before:.2f} before, {os.getloadavg()[0]:.2f} after",
    }
