"""Measures, on the ranks of an allocation, a calibration and the steps of every reducer under each mount.

The reducers take turns within a mount, in one process group (sage/bench/advise/trials.py): six rounds or
more after four steps of warm-up. With --again, the fastest of them are then measured by themselves for as
long again: the least of many medians is below its true value by chance. The options are those of
`sage calibrate`, of the mounts and of the rounds. `predict_error.py` and `advise_error.py` start it on
clusters with throttled links.

    srun python benchmarks/cluster_steps.py resnet20-cifar10 --reducers bf16 topk --output steps
"""

import gc
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sage import storage
from sage.bench.advise import predictions, trials
from sage.bench.advise.main import block
from sage.bench.advise.setups import flags
from sage.bench.calibrate import Plan, ranks
from sage.bench.calibrate.gradients import reducer_of
from sage.bench.calibrate.measurement import measure, training_of
from sage.bench.calibrate.plan import unlimited
from sage.cli.calibrate import REDUCERS, Calibrate
from sage.cli.command import Option
from sage.comm.process import ProcessWire
from sage.config import Config
from sage.predict.calibration import write
from sage.predict.step_time import Mount
from sage.records.progress import Display
from sage.train.mount_limits import needs_one_bucket

NAME = "cluster_steps"


def start(
    *,
    config: Config,
    reducers: Sequence[Config],
    seconds: float,
    steps: int,
    output: Path,
    mounts: Sequence[Mount],
    together: bool,
    trial_seconds: float,
    again: int,
    other_buckets: bool,
    **_: object,
) -> int:
    """Measure on all ranks; returns the exit status, as `sage calibrate` does."""
    plan = Plan(config=config, reducers=reducers, seconds=seconds, steps=steps)
    groups: list[Sequence[Mount]] = [mounts] if together else [[mount] for mount in mounts]
    work = partial(_work, plan, output, groups, trial_seconds, again, other_buckets)
    return ranks.run(NAME, plan.config, plan.facts(), work)


def _work(
    plan: Plan,
    output: Path,
    groups: Sequence[Sequence[Mount]],
    trial_seconds: float,
    again: int,
    other_buckets: bool,
    wire: ProcessWire,
    device: torch.device,
) -> int:
    load = os.getloadavg()[0]  # of other work: the ranks have only started
    with Display(NAME, enabled=wire.rank == 0) as display:
        calibration, notes = measure(plan, wire, device, display)
        rows: list[dict[str, Any]] = []
        sizes = predictions.bucket_sizes(calibration.model.numel) if other_buckets else []
        for mounts in groups:
            configs = [
                replace(reducer, mount=mount, bucket_mb=size)
                for mount in mounts
                for reducer in plan.reducers
                if _can_run(reducer, mount)
                for size in ([reducer.bucket_mb, *sizes] if mount == "ddp" else [reducer.bucket_mb])
            ]
            display.print(f"steps of {len(configs)} set-ups, --mount {' and '.join(mounts)}")
            trainings = [training_of(unlimited(config, wire.world_size), wire, device) for config in configs]
            blocks = [block(training) for training in trainings]
            measured = trials.measure(blocks, wire, trial_seconds)
            fastest = sorted(range(len(blocks)), key=lambda i: statistics.median(measured[i].seconds))[:again]
            if fastest:
                display.print(f"steps of the {len(fastest)} fastest again")
            measured_again = trials.measure([blocks[i] for i in fastest], wire, trial_seconds)
            repeated = dict(zip(fastest, measured_again, strict=True))
            for training in trainings:
                training.mount.close()
            del trainings, blocks
            gc.collect()  # the models of one group take enough memory
            for i, (config, trial) in enumerate(zip(configs, measured, strict=True)):
                rows.append({**_row(config, trial), "again": repeated[i].seconds if i in repeated else None})
    if wire.rank == 0:
        output.mkdir(parents=True, exist_ok=True)
        write(output / "calibration.json", calibration)
        content = {"load": load, "failed": notes.failed, "left_out": notes.left_out, "rows": rows}
        storage.write_json(output / "steps.json", content)
    return 0


def _can_run(config: Config, mount: Mount) -> bool:
    return mount == "whole" or not needs_one_bucket(config, reducer_of(config))


def _row(config: Config, trial: trials.Trial) -> dict[str, Any]:
    return {
        "reducer": config.reducer,
        "options": config.to_dict()["reducer_options"],
        "mount": config.mount,
        "bucket_mb": config.bucket_mb,
        "name": flags(config),
        **asdict(trial),
    }


command = Calibrate(
    NAME,
    start,
    [
        Option("reducers", tuple[str, ...], REDUCERS, "The reducers, each NAME[:OPTION=VALUE,...]."),
        Option("densities", tuple[float, ...], (), "Target densities; default: that of each reducer."),
        Option("steps", int, 10, "Least number of timed steps; number of reductions of each reducer."),
        Option("seconds", float, 60.0, "Time for the collectives; the reducers take the same time."),
        Option("output", Path, Path("steps"), "The folder for calibration.json and steps.json."),
        Option("mounts", tuple[Mount, ...], ("whole", "ddp"), "The mounts."),
        Option("together", bool, False, "Alternate between mounts as well; it takes more memory."),
        Option("trial_seconds", float, 0.0, "Time for the rounds; six are measured in any case."),
        Option("other_buckets", bool, False, "Also measure the other sizes of buckets of `sage advise`."),
        Option("again", int, 0, "Number of the fastest set-ups that are measured a second time."),
    ],
    help="Measure a calibration, and the steps of every reducer under each mount, on all ranks.",
)

if __name__ == "__main__":
    sys.exit(command.main(standalone_mode=False))
