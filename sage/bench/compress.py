"""`sage bench compress`: what it costs to compress a gradient and to decompress it, without any network."""

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from sage import registry, storage
from sage.bench import figure
from sage.bench.repetitions import Row, Spread, cases_of, inputs, measure
from sage.cli.parser import Parser
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
)
"""Of the table."""
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
)
"""Of the CSV."""


def main(argv: Sequence[str]) -> int:
    """Measure every case on every input; 1 where a reducer failed."""
    parser = Parser(prog="sage bench compress", description=__doc__)
    parser.add_argument(
        "--reducers", nargs="+", metavar="NAME[:OPTION=VALUE,...]", default=registry.names("reducers")
    )
    parser.add_argument("--mib", nargs="*", type=float, default=[1, 10, 100], help="sizes of N(0, 1) vectors")
    parser.add_argument("--traces", nargs="*", type=Path, default=[], help="files of `sage bench record`")
    parser.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.01, 0.001])
    parser.add_argument(
        "--step", type=int, default=100, help="of the traces, or their last if they are shorter"
    )
    parser.add_argument("--settle", type=int, default=0, help="untimed reductions before each timed one")
    parser.add_argument("--rounds", type=int, default=10, help="timed reductions of each case")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before these, which are dropped")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--seed", type=int, default=0, help="of the vectors and of the order")
    parser.add_argument("--output", type=Path, metavar="PREFIX", help="where PREFIX.csv and PREFIX.svg go")
    given = parser.parse_args(argv)
    for name, least in (("step", 0), ("settle", 0), ("rounds", 2), ("warmup", 0), ("threads", 1)):
        if getattr(given, name) < least:
            raise ValueError(f"--{name} {getattr(given, name)}: expected {least} or more")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; leave it out to measure on the CPU")
    if any(not 0 < each < math.inf for each in given.mib):
        raise ValueError(f"--mib {' '.join(f'{each:g}' for each in given.mib)}: expected sizes above 0")
    if not given.mib and not given.traces:
        raise ValueError("nothing to compress: give --mib a size, or --traces a file of `sage bench record`")
    device = torch.device(given.device)
    cases = [case for spec in given.reducers for case in cases_of(spec, given.densities)]
    torch.set_num_threads(given.threads)
    load_before = os.getloadavg()[0]
    rows: list[Row] = []
    for each in inputs(given.mib, given.traces, given.step, given.settle, given.seed, device):
        new = measure(each, cases, given.rounds, given.warmup, given.seed)
        print("" if rows else heading(), *map(line, new), sep="", end="", flush=True)
        rows += new
    if given.output:
        command = shlex.join(["sage", "bench", "compress", *argv])
        head = surroundings(command, given.device, load_before)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        write_csv(head, rows, given.output.with_name(given.output.name + ".csv"))
        picture = figure.throughput_by_reducer(rows)
        storage.write_text(given.output.with_name(given.output.name + ".svg"), picture)
    return 1 if any(row.error for row in rows) else 0


# What is told of it.


def heading() -> str:
    """The first two lines of the table."""
    return f"| {' | '.join(TITLES)} |\n|---|---:|---|{'---:|' * 6}\n"


def line(row: Row) -> str:
    """A line of the table; times are medians, with quartiles."""
    density = row.case.density
    told = [row.input, "–" if density is None else f"{density:g}", f"`{row.case.name}`"]
    if row.error:
        told += ["–", "–", "–", f"failed: {row.error.replace('|', '/')}", "–", "–"]
    else:
        told += [
            "–" if row.sent_over_k is None else f"{row.sent_over_k:.3f}",
            size(row.payload),
            percent(row.payload / row.dense),
            _milliseconds(row.compress),
            f"{row.megabytes_per_second:.0f}",
            _milliseconds(row.decompress),
        ]
    return f"| {' | '.join(told)} |\n"


def _milliseconds(seconds: Spread) -> str:
    low, median, high = (f"{1e3 * value:.3g}" for value in (seconds.low, seconds.median, seconds.high))
    return f"{median} ({low}–{high})"


def values(row: Row) -> dict[str, Any]:
    """A line of the CSV, what is unknown left out."""
    told: dict[str, Any] = {
        "input": row.input,
        "elements": row.elements,
        "reducer": row.case.name,
        "density": row.case.density,
        "rounds": len(row.rounds),
        "error": row.error,
    }
    if row.error:
        return told
    return told | {
        "sent": row.sent,
        "sent_over_k": row.sent_over_k,
        "payload_bytes": row.payload,
        "payload_over_dense": f"{row.payload / row.dense:.6g}",
        "megabytes_per_second": f"{row.megabytes_per_second:.6g}",
        **{f"compress_seconds_{name}": f"{getattr(row.compress, name):.6g}" for name in SPREAD},
        **{f"decompress_seconds_{name}": f"{getattr(row.decompress, name):.6g}" for name in SPREAD},
    }


def write_csv(head: Mapping[str, object], rows: Sequence[Row], path: Path) -> None:
    """The results, under lines of `# name: value` that say where they come from."""
    storage.write_csv(
        path, map(values, rows), FIELDS, head=[f"# {name}: {value}" for name, value in head.items()]
    )


def surroundings(command: str, device: str, load_before: float) -> dict[str, object]:
    """What a figure is worthless without."""
    told = manifest({}, {})
    machine, git = told["machine"], told["git"]
    return {
        "command": command,
        "commit": f"{git['commit']}{', and changes that are not in it' if git['dirty'] else ''}",
        "time": told["time"],
        "machine": f"{machine['cores']} x {machine['cpu']}",
        "device": ", ".join(machine["gpus"]) if device == "cuda" else "cpu",
        "torch": told["versions"]["torch"],
        "threads": torch.get_num_threads(),
        "native extension": "yes" if native.MISSING is None else f"no, {native.MISSING}",
        "load average": f"{load_before:.2f} before, {os.getloadavg()[0]:.2f} after",
    }
