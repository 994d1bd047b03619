"""Runs the sections one after another, each in a process with a time budget, and writes the table.

    python -m benchmarks.gpu               # on a machine with a GPU; results/gpu-CARD.json and .md
    python -m benchmarks.gpu --rehearsal   # small inputs on a CPU; build/gpu-rehearsal.json and .md
    python -m benchmarks.gpu --sections ops speed

A section that fails or exceeds its time does not stop the others: its rows are kept, and the table marks it.
The exit status is 1 if a check failed; a missed goal is not a failure.
"""

import argparse
import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.rows import HEADING, Row, Rows, line, read

ROOT = Path(__file__).parents[2]
SECTIONS = {
    "build": ("build", 100),
    "ops": ("ops_checks", 100),
    "reducers": ("conformance", 70),
    "mounts": ("mounts", 70),
    "speed": ("speed", 70),
    "steps": ("steps", 60),
}
"""The module and seconds of each section; less than eight minutes in total."""
REHEARSAL_SECONDS = 120
WHOLE = 470
"""Seconds for all sections; a section gets the remainder if that is less than its own time."""


def main() -> int:
    """Run all sections, or the one given by `--section` in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rehearsal", action="store_true", help="small inputs on a CPU")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=tuple(SECTIONS))
    parser.add_argument("--output", type=Path, help="output path, to which .json and .md are appended")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section:
        return section(arguments.section, arguments.rows, arguments.seconds, rehearsal=arguments.rehearsal)
    if not arguments.rehearsal and not has_gpu():
        print("torch finds no GPU: run this on a machine with a GPU, or use --rehearsal", file=sys.stderr)
        return 2
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows")
        spent = {}
        for name in arguments.sections:
            budget = REHEARSAL_SECONDS if arguments.rehearsal else SECTIONS[name][1]
            begun = time.monotonic()
            guarded(name, path, min(budget, WHOLE - (begun - start)), rehearsal=arguments.rehearsal)
            spent[name] = round(time.monotonic() - begun, 1)
        rows = read(path)
        head = json.loads(path.with_suffix(".head").read_text()) if path.with_suffix(".head").exists() else {}
    return write(rows, head, spent, arguments.output, rehearsal=arguments.rehearsal)


def has_gpu() -> bool:
    """Return whether torch finds a GPU."""
    import torch  # imported here: a rehearsal's main process does not need torch

    return torch.cuda.is_available()


def section(name: str, path: Path, seconds: float, *, rehearsal: bool) -> int:
    """Run one section in this process."""
    from benchmarks.gpu.device import Device, describe

    device = Device(rehearsal)
    path.with_suffix(".head").write_text(json.dumps(describe(device)))
    rows = Rows(name, path, seconds)
    importlib.import_module(f"benchmarks.gpu.{SECTIONS[name][0]}").run(rows, device)
    return 0


def guarded(name: str, path: Path, seconds: float, *, rehearsal: bool) -> None:
    """Run one section in a separate process; end it and all of its children after its time."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--rows", str(path)]
    command += ["--seconds", str(seconds), *(["--rehearsal"] if rehearsal else [])]
    errors = path.with_suffix(".errors")
    with errors.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log, start_new_session=True)
        try:
            status = process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            Rows(name, path, 0).add("the section", "cut off", f"after {seconds:.0f} s")
            return
        finally:
            with contextlib.suppress(ProcessLookupError):  # all processes of the section have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status:
        text = " ".join(errors.read_text().split())[-300:]
        Rows(name, path, 0).add("the section", "failed", f"status {status}: {text}")


def write(
    rows: list[Row],
    head: dict[str, object],
    spent: dict[str, float],
    output: Path | None,
    *,
    rehearsal: bool,
) -> int:
    """Write the JSON file and the table; return the exit status."""
    card = re.sub(r"[^a-z0-9]+", "-", str(head.get("device", "unknown")).lower()).strip("-")
    default = ROOT / "build/gpu-rehearsal" if rehearsal else ROOT / f"benchmarks/results/gpu-{card}"
    path = output or default
    path.parent.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    report = {"commit": commit.stdout.strip(), **head, "seconds": spent, "rows": [vars(row) for row in rows]}
    path.with_name(path.name + ".json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    counts = {
        status: sum(row.status == status for row in rows) for status in ("ok", "failed", "missed", "cut off")
    }
    summary = ", ".join(f"{number} {status}" for status, number in counts.items())
    table = (
        f"{head.get('device')}, torch {head.get('torch')}, commit {report['commit']}: {summary}\n\n{HEADING}"
    )
    path.with_name(path.name + ".md").write_text(table + "".join(map(line, rows)))
    print(f"{summary}; {sum(spent.values()):.0f} s; {path}.md and .json")
    return 1 if counts["failed"] or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
