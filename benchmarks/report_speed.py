"""Measures `sage report` on many runs: seconds, peak memory, and the size of the page.

The run folders are synthetic: nothing was trained. The configurations and the file layout are real. The
losses, accuracies and times are artificial, and every manifest states this.

python benchmarks/report_speed.py [--runs 2000] [--steps 100] [--seeds 1] [--keep FOLDER]
"""

import argparse
import contextlib
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sage.config import Config

REDUCERS = ("exact", "topk", "sage", "dgc", "threshold", "qsgd", "powersgd", "bf16")
PARAMETERS = 269_722


def main() -> None:
    """Write the runs, create the report in a separate process, and print its cost."""
    parser = argparse.ArgumentParser(description="Measure `sage report` on synthetic runs.")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--seeds", type=int, default=1, help="runs of a setting that differ in the seed alone"
    )
    parser.add_argument("--keep", type=Path, help="write the runs here and keep them")
    given = parser.parse_args()
    holder = contextlib.nullcontext(given.keep) if given.keep else TemporaryDirectory()
    with holder as name:
        folder = Path(name)
        for i in range(given.runs):
            write_run(folder, i // given.seeds, i % given.seeds, given.steps)
        begun = time.perf_counter()
        command = [sys.executable, "-m", "sage", "report", str(folder), "--output", str(folder / "report")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        page = (folder / "report" / "report.html").stat().st_size
        print(
            f"{given.runs} synthetic runs of {given.steps} steps: {seconds:.1f} s "
            f"({used.ru_utime + used.ru_stime:.1f} s of CPU), peak {used.ru_maxrss / 1e6:.2f} GB, "
            f"page {page / 1e6:.1f} MB"
        )


def write_run(runs: Path, setting: int, seed: int, steps: int) -> None:
    """Write the folder of one finished run; reducer and learning rate depend on the number of the setting."""
    reducer = REDUCERS[setting % len(REDUCERS)]
    share = 1.0 if reducer in ("exact", "qsgd", "powersgd", "bf16") else 0.01
    options: dict[str, Any] = {} if share == 1.0 else {"density": share}
    config = Config(
        workload="synthetic",
        task="classify",
        model="resnet",
        data="cifar10",
        reducer=reducer,
        reducer_options=options,
        lr=0.1 * (1 + setting // len(REDUCERS)),
        seed=seed,
        runs=runs,
    )
    payload = {"values": int(4 * PARAMETERS * share), "control": 16}
    traffic = {"bytes": payload, "wire_sent": sum(payload.values()), "wire_received": sum(payload.values())}
    density = {"density_asked": share if options else None, "density_had": share}
    lines = []
    metrics: dict[str, float] = {}
    for step in range(steps):
        loss = 2.3 * math.exp(-3 * step / steps) + 0.01 * math.sin(17 * step + seed)
        pace = {"seconds": 0.02 * (1 + 0.1 * math.sin(5 * step + seed)), "lr": config.lr}
        lines.append({"kind": "step", "step": step, "epoch": 0, "loss": loss} | pace | density | traffic)
        if (step + 1) % max(1, steps // 4) == 0:
            metrics = {"accuracy": 1 - loss / 3, "loss": loss}
            lines.append(
                {"kind": "epoch", "epoch": (step + 1) / steps, "step": step + 1, "train_loss": loss}
                | {"metrics": metrics, "seconds": 0.1}
            )
    result = {
        "metric": "accuracy",
        "better": "max",
        "parameters": PARAMETERS,
        "steps": steps,
        "final": metrics,
        "best": metrics["accuracy"],
        "seconds": steps * 0.02,
        "steps_per_second": 50 + math.sin(seed + setting),
        "step_seconds": {"p50": 0.02, "p95": 0.021, "p99": 0.022},
        "payload_per_step": payload,
        "wire_sent_per_step": traffic["wire_sent"],
        "wire_received_per_step": traffic["wire_received"],
    } | density
    machine = {"hostname": "synthetic", "os": "none", "cpu": "none: these runs are synthetic, not trained"}
    manifest = {
        "time": "2026-01-01T00:00:00+00:00",
        "versions": {"sage": "0"},
        "machine": machine | {"cores": 1, "memory_bytes": 1, "gpus": []},
        "hosts": ["synthetic"],
        "links": None,
        "git": {"commit": None, "dirty": None},
    }
    config.folder.mkdir(parents=True)
    for name, content in (("config", config.to_dict()), ("manifest", manifest), ("result", result)):
        (config.folder / f"{name}.json").write_text(json.dumps(content))
    (config.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
