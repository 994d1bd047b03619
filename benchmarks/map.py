"""Makes the README's map: which method has the shortest step, by bandwidth and number of ranks.

    python benchmarks/map.py --measure [--workload digits]   # on a quiet machine: 3 minutes on two cores
    python benchmarks/map.py                                 # draw it again from the last measurement

`sage calibrate` measures computation, reducers and links with two ranks on this machine; `sage predict` draws
docs/map.svg from it. The measurement is results/map_calibration.json; results/map_origin.json has its commit
and the load of the machine. The captions below the map in README.md and docs/index.md are written from them.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from sage.config import load as load_config

ROOT = Path(__file__).resolve().parent.parent
CALIBRATION = ROOT / "benchmarks" / "results" / "map_calibration.json"
ORIGIN = ROOT / "benchmarks" / "results" / "map_origin.json"
PICTURE = ROOT / "docs" / "map.svg"
PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md")

QUIET = 0.5
"""The machine is quiet if its 1-minute load average before the measurement is at most this."""


def main() -> None:
    """Measure with `--measure`, draw the map, and write its captions."""
    parser = argparse.ArgumentParser(description="Make the README's map of the fastest methods.")
    parser.add_argument("--measure", action="store_true", help="measure first; other programs should not run")
    parser.add_argument("--workload", default="digits", help="the workload to measure; default: digits")
    given = parser.parse_args()
    if given.measure:
        measure(given.workload)
    with tempfile.TemporaryDirectory() as folder:
        sage(
            "predict",
            str(CALIBRATION),
            "--world-size",
            "2",
            "256",
            "--ranks-per-node",
            "1",
            "--output",
            folder,
        )
        shutil.copyfile(Path(folder) / "map.svg", PICTURE)
    text = caption(json.loads(CALIBRATION.read_text()), json.loads(ORIGIN.read_text()))
    for page in PAGES:
        page.write_text(captioned(page.read_text(), text))
    print(text)


def measure(workload: str) -> None:
    """Write the calibration and its origin."""
    load = os.getloadavg()[0]
    command = ["calibrate", workload, "--world-size", "2", "--seconds", "60", "--steps", "20"]
    sage(*command, "--output", str(CALIBRATION))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    config = load_config(workload)
    options = [f"{name}={value}" for name, value in config.model_options.items()]
    model = ", ".join([config.model, *options])
    origin = {"commit": commit, "model": model, "command": f"sage {' '.join(command)}", "load": load}
    ORIGIN.write_text(json.dumps(origin, indent=2) + "\n")


def sage(*argv: str) -> None:
    """Run a command of SAGE; its tables are not shown."""
    subprocess.run([sys.executable, "-m", "sage", *argv], check=True, stdout=subprocess.DEVNULL)


def caption(calibration: dict[str, Any], origin: dict[str, Any]) -> str:
    """State what the map shows, what is measured and what is predicted, in lines of 120 characters."""
    model, machine = calibration["model"], calibration["machine"]
    size = sum(parameter["numel"] for parameter in model["parameters"])
    load = origin["load"]
    text = (
        "The method with the shortest step, predicted for other bandwidths and numbers of ranks (`sage "
        "predict`) from measured times of computation, reducers and messages: workload "
        f"`{model['workload']}` ({origin['model']}, {size:,} parameters, {model['batch_size']} samples per "
        f"rank), {calibration['world_size']} ranks on one machine ({machine['cpu']}, {machine['cores']} "
        f"cores), {calibration['time'][:10]}, commit {origin['commit']}. Grey: nothing pays; no method is "
        "faster than overlapped bf16 and exact."
    )
    if load is None or load > QUIET:
        text += " Other programs shared the cores, so that computation took longer."
    return "\n".join(textwrap.wrap(f"*{text}*", 120, break_on_hyphens=False))


def captioned(page: str, text: str) -> str:
    """Return a page with this caption below its map."""
    return re.sub(
        r"(!\[[^\]]*\]\((?:docs/)?map\.svg\)\n\n)\*[^*]*\*\n", lambda match: f"{match[1]}{text}\n", page
    )


if __name__ == "__main__":
    main()
