"""Reads run folders and says what each run came to, finished or not, beside the others of its workload."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy

from sage.comm.ledger import KINDS
from sage.config import ASIDE, annotations
from sage.tell.record import Record, read_metrics

EXACT = "exact"
"""The reducer that the others are compared with."""

TOLERANCE = 0.2
"""How far from the density asked for a step's density may lie and still count as met."""

Values = dict[str, Any]
"""A run's line in report.csv: None is what a run has no figure for, NaN a figure that was not finite."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, as it was read."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    result: dict[str, Any] | None
    """None where the run is not finished."""
    records: list[Record]

    @cached_property
    def steps(self) -> list[Record]:
        return [record for record in self.records if record["kind"] == "step"]

    @cached_property
    def epochs(self) -> list[Record]:
        return [record for record in self.records if record["kind"] == "epoch"]

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The result; of an unfinished run the same figures, as far as rank 0's own records give them."""
        return self.result or _provisional(self)

    @property
    def status(self) -> str:
        """Whether the run is finished, else how far it got and what befell it; how often it was resumed."""
        words = ["finished" if self.result else f"unfinished at step {self.figures['steps']}"]
        events = [record["event"] for record in self.records if record["kind"] == "event"]
        if not self.result and events and events[-1] != "resumed":
            words.append(events[-1])
        if resumed := events.count("resumed"):
            words.append(f"resumed {resumed}×")
        return ", ".join(words)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run among those it is compared with."""

    run: Run
    label: str
    """The reducer, and what distinguishes this run from the others with the same reducer."""
    series: str
    """The label without the seed: the runs of a series are drawn alike."""
    values: Values


@dataclass(frozen=True, kw_only=True)
class Group:
    """The runs of one workload on one number of ranks, which can be compared with each other."""

    workload: str
    world_size: int
    metric: str
    better: str
    rows: list[Row]

    @property
    def title(self) -> str:
        return f"{self.workload}, {self.world_size} rank{'s' if self.world_size > 1 else ''}"

    @property
    def kinds(self) -> list[str]:
        """The kinds of payload in the ledger's order, then the engine's own by name."""
        kinds = {kind for row in self.rows for kind in row.run.figures["payload_per_step"]}
        return sorted(kinds, key=lambda kind: (KINDS.index(kind) if kind in KINDS else len(KINDS), kind))


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], dict[Path, str]]:
    """All runs under the paths, and for each run folder that cannot be read, why."""
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no folder; give run folders, or folders that hold some")
    folders = {file.parent.resolve() for path in paths for file in path.rglob("metrics.jsonl")}
    if not folders:
        raise ValueError(
            f"no runs under {', '.join(map(str, paths))}; a run folder is what `sage run` makes, "
            "runs/<workload>-<reducer>-<hash>, and holds a metrics.jsonl"
        )
    runs, unreadable = [], {}
    for folder in sorted(folders):
        try:
            runs.append(_read_run(folder))
        except ValueError as error:
            unreadable[folder] = str(error)
    return runs, unreadable


def grouped(runs: Iterable[Run]) -> list[Group]:
    """The runs by workload and number of ranks; within a group exact comes first."""
    alike: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for run in runs:
        alike[run.config["workload"], run.config["world_size"]].append(run)
    groups = []
    for (workload, world_size), members in sorted(alike.items()):
        rows = [_row(run, members) for run in members]
        rows.sort(key=lambda row: (row.values["reducer"] != EXACT, row.label))
        metric, better = (members[0].figures[name] for name in ("metric", "better"))
        groups.append(
            Group(workload=workload, world_size=world_size, metric=metric, better=better, rows=rows)
        )
    return groups


def _read_run(folder: Path) -> Run:
    return Run(
        folder=folder,
        config=_read_json(folder / "config.json"),
        manifest=_read_json(folder / "manifest.json"),
        result=_read_json(folder / "result.json") if (folder / "result.json").exists() else None,
        records=read_metrics(folder),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise ValueError(f"{path.name} is missing") from cause
    except ValueError as cause:
        raise ValueError(f"{path.name} is no JSON: {cause}") from cause
    return content


def _provisional(run: Run) -> dict[str, Any]:
    # Here because it imports torch, which finished runs can be read without.
    from sage.task import TASKS

    task = TASKS[run.config["task"]]
    better = task.better[task.metric]
    reached = [value for each in run.epochs if (value := each["metrics"][task.metric]) is not None]
    steps = run.steps[-1]["step"] + 1 if run.steps else 0
    seconds = [each["seconds"] for each in run.steps]
    kinds = {kind for each in run.steps for kind in each["bytes"]}
    return {
        "metric": task.metric,
        "better": better,
        "steps": steps,
        "final": run.epochs[-1]["metrics"] if run.epochs else {},
        "best": (max if better == "max" else min)(reached, default=None),
        "seconds": steps * statistics.fmean(seconds) if seconds else None,
        "steps_per_second": 1 / statistics.fmean(seconds) if seconds else None,
        "step_seconds": {f"p{q}": float(numpy.percentile(seconds, q)) for q in (50, 95, 99) if seconds},
        "payload_per_step": {kind: _mean(each["bytes"].get(kind, 0) for each in run.steps) for kind in kinds},
        "wire_sent_per_step": _mean(each["wire_sent"] for each in run.steps),
        "wire_received_per_step": _mean(each["wire_received"] for each in run.steps),
        "density_asked": _mean(each["density_asked"] for each in run.steps),
        "density_had": _mean(each["density_had"] for each in run.steps),
    }


def _row(run: Run, members: Sequence[Run]) -> Row:
    figures = run.figures
    exact = _baseline(run, members)
    payload = figures["payload_per_step"]
    label = _label(run, members)
    values = {
        **{name: run.config[name] for name in ("workload", "world_size", "reducer")},
        "label": label,
        "seed": run.config["seed"],
        "status": run.status,
        "metric": figures["metric"],
        "better": figures["better"],
        "final": _measured(figures["final"], figures["metric"]),
        "best": _measured(figures, "best") if run.epochs else None,
        "train_loss": _measured(run.epochs[-1], "train_loss") if run.epochs else None,
        "steps": figures["steps"],
        "seconds": figures["seconds"],
        "steps_per_second": figures["steps_per_second"],
        **{f"step_seconds_{q}": figures["step_seconds"].get(q) for q in ("p50", "p95", "p99")},
        "speed_up": exact and _ratio(figures["steps_per_second"], exact["steps_per_second"]),
        "wire_bytes_per_step": _wire(figures),
        "wire_sent_bytes_per_step": figures["wire_sent_per_step"],
        "wire_received_bytes_per_step": figures["wire_received_per_step"],
        "compression": exact and _ratio(_wire(exact), _wire(figures)),
        "density_asked": figures["density_asked"],
        "density_had": figures["density_had"],
        "density_met": _density_met(run.steps),
        "payload_bytes_per_step": sum(payload.values()) if payload else None,
        **{f"payload_{kind}_bytes_per_step": size for kind, size in payload.items()},
        "folder": str(run.folder),
    }
    return Row(run=run, label=label, series=_label(run, members, without="seed"), values=values)


def _label(run: Run, members: Iterable[Run], without: str = "") -> str:
    """The reducer, and those settings in which the runs with this reducer differ."""
    mine = _settings(run)
    others = [_settings(each) for each in members if each.config["reducer"] == run.config["reducer"]]
    differing = [
        name for name in mine if name != without and any(mine[name] != each.get(name) for each in others)
    ]
    words = [f"{name}={mine[name]}" for name in differing]
    if sum(mine == each for each in others) > 1:
        words.append(f"in {run.folder.parent}")
    return " ".join([run.config["reducer"], *words])


def _settings(run: Run) -> dict[str, Any]:
    """What a run's result depends on, the reducer's own options first."""
    aside = {name for name, annotation in annotations().items() if ASIDE in get_args(annotation)}
    own = {name: value for name, value in run.config.items() if name not in aside}
    options = own.pop("reducer_options", {})
    return options | dict(_flat(own))


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            part = name.removesuffix("_options")
            yield from ((f"{part}.{option}", given) for option, given in value.items())
        else:
            yield name, value


def _baseline(run: Run, members: Iterable[Run]) -> dict[str, Any] | None:
    """The figures of the exact run to compare with: one of the same seed and place, if there is one."""
    exacts = [each for each in members if each.config["reducer"] == EXACT]

    def likeness(exact: Run) -> tuple[bool, bool, bool]:
        same_seed = exact.config["seed"] == run.config["seed"]
        return exact.result is not None, same_seed, exact.folder.parent == run.folder.parent

    return max(exacts, key=likeness).figures if exacts else None


def _density_met(steps: Iterable[Record]) -> float | None:
    """The share of steps whose density was within the tolerance of the one asked for."""
    pairs = [(step["density_asked"], step["density_had"]) for step in steps]
    return _mean(abs(had / asked - 1) <= TOLERANCE for asked, had in pairs if asked and had is not None)


def _wire(figures: Mapping[str, Any]) -> float | None:
    sent, received = figures["wire_sent_per_step"], figures["wire_received_per_step"]
    return None if sent is None or received is None else sent + received


def _measured(figures: Mapping[str, Any], name: str) -> float | None:
    """The figure, NaN where it was measured but not finite, and None where it was not measured."""
    value = figures.get(name, None)
    return math.nan if value is None and name in figures else value


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
