"""A calibration from the folders of finished runs, as far as their records go."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage import storage
from sage.bench.calibrate.gradients import Gradients, reducer_of
from sage.bench.calibrate.model_times import WARM_UP, rest_of_step
from sage.bench.calibrate.recorded_messages import drawn_gradients, recorded_messages
from sage.comm.ledger import ring_all_reduce
from sage.config import EXCHANGING, Config, recorded
from sage.output.text import clean_text
from sage.predict.calibration import Calibration, MethodTimes, ModelTimes, Parameter, Samples
from sage.predict.calibration_schema import Scope
from sage.records import run_folder
from sage.records.record import read_metrics
from sage.train.mount_limits import needs_one_bucket

ALIKE = (
    "workload",
    "model",
    "model_options",
    "data",
    "data_options",
    "world_size",
    "batch_size",
    "accumulate",
)
"""Settings that all runs of a calibration share."""


@dataclass(frozen=True)
class Run:
    """What a calibration reads from a run folder."""

    folder: Path
    config: Config
    manifest: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    """Records of its steps, without the first ones."""

    def samples(self, name: str) -> list[float]:
        """Return a field of the steps that have it."""
        return [float(step[name]) for step in self.steps if step.get(name) is not None]

    @property
    def scope(self) -> Scope:
        """Whether the ranks were on several nodes."""
        return "inter" if len(set(self.manifest["hosts"])) > 1 else "intra"

    @property
    def profiled(self) -> list[Mapping[str, Any]]:
        """The steps whose phases were timed."""
        return [step for step in self.steps if step.get("phases")]


def from_runs(folders: Sequence[Path]) -> tuple[Calibration, str]:
    """Return what runs of one workload at one number of ranks hold, and a line that says what they lack.

    The links are those that each run measures before training: an all-reduce of 4 bytes and a large one. The
    computation is that of the runs with `--profile`, on rank 0. The time at which each gradient is ready is
    not recorded, and is taken as the end of backward; γ is taken as 1.

    Args:
        folders: Finished runs of `sage run`.

    Raises:
        ValueError: a folder has no finished run, the runs differ in one of `ALIKE`, or no run has phases.
        OSError: the files of the data set, which the shapes of the model depend on, cannot be read.
    """
    runs = [_read(folder) for folder in folders]
    first = runs[0]
    for run in runs[1:]:
        _check_alike(first, run)
    if not any(run.profiled for run in runs):
        names = ", ".join(str(run.folder) for run in runs)
        raise ValueError(f"no times of forward and backward are in {names}: run one of them with --profile")
    gradients = drawn_gradients(first.config)
    methods, failed = _methods(runs, gradients)
    links = tuple(sample for run in runs for sample in _links(run))
    hosts = Counter(first.manifest["hosts"])
    calibration = Calibration(
        machine={**first.manifest["machine"], "torch": first.manifest["versions"]["torch"]},
        time=max(str(run.manifest.get("time", "")) for run in runs),
        world_size=first.config.world_size,
        ranks_per_node=max(hosts.values()),
        links=links,
        model=_model(runs, gradients),
        methods=tuple(methods),
    )
    lacks = [
        "when each gradient is ready (taken as the end of backward)",
        "backward during communication (γ taken as 1)",
        f"collectives {'except all_reduce at two sizes' if links else 'of any kind'}",
        f"decoding of other numbers of payloads than {first.config.world_size}",
        *failed,
    ]
    return calibration, f"the runs do not have: {'; '.join(lacks)}"


def _read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: it has no finished run of `sage run` between processes, or is damaged.
    """
    try:
        result = run_folder.result(folder)
        values = storage.read_json(folder / "config.json", storage.CONFIG) if result else {}
        manifest = storage.read_json(folder / "manifest.json", storage.MANIFEST) if result else {}
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} has no {Path(str(error.filename)).name}: name a folder of `sage run`"
        ) from error
    if result is None:
        raise ValueError(f"{folder} has no finished run: name folders with a result.json")
    try:
        config = recorded(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder} is not a run of `sage run`: {clean_text(str(error), 300)}") from error
    if config.workers_in_process or not manifest.get("hosts"):
        raise ValueError(f"{folder} has simulated ranks, whose times are not those of ranks: leave it out")
    if config.mount != "whole":
        raise ValueError(
            f"{folder} has the mount {config.mount}, under which communication overlaps with backward: name "
            "runs of --mount whole"
        )
    if config.local_steps is not None:
        raise ValueError(
            f"{folder} has local_steps {config.local_steps}, so most of its steps reduce nothing: name runs "
            "without local updates"
        )
    if config.optimizer in EXCHANGING:
        raise ValueError(
            f"{folder} has the optimizer {config.optimizer}, which communicates itself: use others"
        )
    if config.hierarchy != "flat":
        raise ValueError(
            f"{folder} has the hierarchy {config.hierarchy}, whose reducers see a part of the gradient: name "
            "runs of the hierarchy flat"
        )
    steps = [record for record in read_metrics(folder) if record["kind"] == "step"]
    return Run(folder, config, manifest, [step for step in steps if step["step"] >= WARM_UP])


def _check_alike(first: Run, other: Run) -> None:
    for name in ALIKE:
        ours, theirs = getattr(first.config, name), getattr(other.config, name)
        if ours != theirs:
            raise ValueError(
                f"{first.folder} has {name} {ours}, and {other.folder} has {theirs}: name runs that differ "
                "in the reducer alone"
            )


def _links(run: Run) -> list[Samples]:
    """Return the two all-reduces from which the run has derived latency and bandwidth."""
    links, ranks = run.manifest.get("links"), run.config.world_size
    if links is None:
        return []
    large = links["largest_bytes"]
    sent, _ = ring_all_reduce(large, ranks)
    return [
        Samples("all_reduce", run.scope, ranks, 4, (2 * (ranks - 1) * links["alpha_seconds"],)),
        Samples("all_reduce", run.scope, ranks, large, (8 * sent / links["bits_per_second"],)),
    ]


def _model(runs: Sequence[Run], gradients: Gradients) -> ModelTimes:
    steps = [step for run in runs for step in run.profiled]
    backward = tuple(step["phases"]["backward"] for step in steps)
    end = statistics.median(backward)
    config = runs[0].config
    return ModelTimes(
        workload=config.workload,
        batch_size=config.batch_size * config.accumulate,
        parameters=tuple(Parameter(name, x.numel(), end) for name, x in gradients.views(0).items()),
        forward_seconds=tuple(step["phases"]["forward"] for step in steps),
        backward_seconds=backward,
        optimizer_seconds=tuple(map(rest_of_step, steps)),
        gamma=(1.0,),
    )


def _methods(runs: Sequence[Run], gradients: Gradients) -> tuple[list[MethodTimes], list[str]]:
    """Return the reducers of the runs, and why others are left out."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(f"{run.config.reducer} {run.config.to_dict()['reducer_options']}", []).append(run)
    found, failed = [], []
    for alike in grouped.values():
        try:
            found.append(_method(alike, gradients))
        except Exception as error:  # a third-party reducer may raise anything
            failed.append(f"{alike[0].config.reducer}, because {clean_text(str(error), 200)}")
    return found, failed


def _method(runs: Sequence[Run], gradients: Gradients) -> MethodTimes:
    config = runs[0].config
    encode, decode, density = (
        tuple(value for run in runs for value in run.samples(name))
        for name in ("encode_seconds", "decode_seconds", "density_had")
    )
    if not encode:
        raise ValueError("its records have no encode_seconds")
    mean = statistics.fmean(density) if density else 1.0
    messages = recorded_messages(config, gradients, [step["bytes"] for run in runs for step in run.steps])
    return MethodTimes(
        reducer=config.reducer,
        options=config.to_dict()["reducer_options"],
        encode_seconds=encode,
        decode_seconds={config.world_size: decode},
        density=None if mean == 1 and "density" not in config.reducer_options else mean,
        messages={config.world_size: messages},
        needs_one_bucket=needs_one_bucket(config, reducer_of(config)),
    )
