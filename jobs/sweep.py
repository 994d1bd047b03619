"""A sweep: a TOML file with the keys of a run, in which lists are expanded into runs.

    workload = "digits-ff"
    reducer = ["exact", "topk"]
    seed = [0, 1]
    parallel = 2                      # maximum number of runs at a time
    max_requeues = 3                  # how often a failed run is started again

    [reducers.topk]
    density = [0.01, 0.001]           # for topk only: 2 runs of exact, 4 of topk

    [slurm]
    time = "1:30:00"                  # sbatch's options by their long names

The sweep is the Cartesian product of all lists. Other combinations are given by `[[grid]]` tables: each is
merged over the keys above, with precedence, and expanded separately. For an option that takes a list, as
`milestones`, a list is one value, and a list of lists expands.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from sage import registry, storage
from sage.config import Config, Count, annotations, check_ranks, neighbours, workloads
from sage.jobs import target_file
from sage.jobs.expansion import OPTIONS, PARTS, Table, check_size, expand, listed, merged
from sage.jobs.pilot import Pilot, check, pilot_runs, tuned
from sage.jobs.pilot import parse as parse_pilot
from sage.jobs.target_file import Choice, FixedTarget
from sage.storage import Kind, Unreadable
from sage.storage.remote.url import RunsFolder
from sage.validate import Range, coerce, known

OWN: dict[str, Any] = {
    "parallel": Count,
    "max_requeues": Annotated[int, Range(0)],
    "max_cells": Count,
    "runs": RunsFolder,
}
"""Keys of the sweep itself. `max_cells` limits the number of runs."""

TABLES = ("pilot", "targets", "chosen")
"""Tables of the sweep itself: the pilot runs, and what `sage target` writes (sage/jobs/target_file.py)."""

NOTES = Kind(name="the notes of a sweep", keys={"files": dict, "cells": dict}, remedy="remove it")
"""The cached expansion of a sweep: hashes of the files read, and each run's label under `cells`."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The configurations of a sweep's runs, in the order of its file, without duplicates."""

    path: Path
    configs: list[Config]
    runs: Path = Path("runs")
    parallel: int | None = None
    """Maximum number of runs at a time; None: SLURM's limit."""
    max_requeues: int = 3
    max_cells: int = 10_000
    """Maximum number of combinations; a sweep with more is refused before it is expanded."""
    files: frozenset[Path]
    """The files read: the sweep and its workloads."""
    pilot: Pilot | None = None
    """Its pilot runs; None if it has none."""
    is_pilot: bool = False
    """Whether `configs` are the pilot runs, and not those of the comparison."""
    targets: Sequence[FixedTarget] = ()
    chosen: Sequence[Choice] = ()
    """The tuning points that `sage target` chose."""

    @property
    def name(self) -> str:
        """The file's stem, which is part of the jobs' name; pilot runs have a name of their own."""
        return f"{self.path.stem}-pilot" if self.is_pilot else self.path.stem


def read(
    path: Path,
    runs: Path | None = None,
    *,
    parallel: int | None = None,
    max_requeues: int | None = None,
    max_cells: int | None = None,
    from_source: bool = False,
    pilot: bool = False,
    untuned: bool = False,
) -> Sweep:
    """Read a sweep; its configurations are validated and resolved. Arguments override the file's keys.

    Args:
        pilot: return the pilot runs instead of those of the comparison.
        untuned: return the comparison's runs before tuning.

    Raises:
        ValueError: a key or value is invalid, or the sweep has more than `max_cells` combinations.
    """
    path = path.resolve()
    table = _parse(path)
    own = {name: table.pop(name) for name in OWN if name in table}
    tables = {name: table.pop(name) for name in TABLES if name in table}
    given = {"runs": runs, "parallel": parallel, "max_requeues": max_requeues, "max_cells": max_cells}
    own |= {name: value for name, value in given.items() if value is not None}
    own = {name: coerce(name, value, OWN[name]) for name, value in own.items()}
    grids = table.pop("grid", [{}])
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise ValueError(f"grid (in {path.name}) is {grids!r}; allowed are tables written as [[grid]]")
    if "runs" in own:
        own["runs"] = own["runs"].expanduser()
    configs: dict[str, Config] = {}
    files = {path}
    reducers = set()
    layers = [merged(_checked(table, path), _checked(grid, path)) for grid in grids]
    for layer in layers:
        if "workload" not in layer:
            raise ValueError(f"a sweep needs a workload: one of {', '.join(workloads())}, or a TOML file")
    check_size(layers, path, own.get("max_cells", Sweep.max_cells), from_source)
    for layer in layers:
        for workload in listed("workload", layer["workload"], str):
            named = not workload.endswith(".toml")
            found = workloads()[known("workload", workload, workloads())] if named else Path(workload)
            files.add(found.resolve())
        for config in expand(layer, own.get("runs", Sweep.runs), from_source):
            if config.mount == "fsdp":
                check_ranks(config.shards, config.world_size)
            if config.hierarchy == "node" and config.ranks_per_node is not None:
                neighbours(config.world_size, config.ranks_per_node)
            configs.setdefault(config.folder.name, config)
            reducers.add(config.reducer)
    for reducer in {name for layer in (table, *grids) for name in layer.get("reducers", {})} - reducers:
        raise ValueError(
            f"[reducers.{reducer}] (in {path.name}) applies to no run; the runs' reducers are "
            f"{', '.join(sorted(reducers))}: add {reducer!r} to reducer, or remove the table"
        )
    plan = parse_pilot(tables["pilot"], path) if "pilot" in tables else None
    targets, chosen = target_file.parse(path, tables.get("targets", []), tables.get("chosen", []))
    resolved = list(configs.values())
    if plan is not None:
        check(plan, resolved, path)
    if pilot:
        if plan is None:
            raise ValueError(f"{path} has no table [pilot], so it has no pilot runs; add one with seed")
        resolved = list(
            {run.folder.name: run for _, _, run in pilot_runs(plan, resolved, from_source)}.values()
        )
    elif plan is not None and plan.is_tuned and not untuned:
        points = {choice.method: choice.point for choice in chosen}
        resolved = list(tuned(resolved, points, path, from_source))
    return Sweep(
        path=path,
        configs=resolved,
        files=frozenset(files),
        pilot=plan,
        is_pilot=pilot,
        targets=targets,
        chosen=chosen,
        **own,
    )


def labels(sweep: Sweep) -> dict[str, str]:
    """For each run, by name, the settings that vary within the sweep."""
    given = {config.folder.name: (config, config.to_dict()) for config in sweep.configs}
    names = dict.fromkeys(name for _, of_run in given.values() for name in of_run)
    settings = {
        # `to_dict` omits some settings at their default, which other runs may have at another value.
        run: dict(_flat({name: getattr(config, name) for name in names} | of_run))
        for run, (config, of_run) in given.items()
    }
    values: dict[str, set[str]] = {}
    for of_run in settings.values():
        for name, value in of_run.items():
            values.setdefault(name, set()).add(repr(value))
    varied = [
        name for name, found in values.items() if len(found) > 1 and name not in ("reducer", "workload")
    ]
    varied.sort(key=lambda name: "." not in name)  # options first
    return {
        run: ", ".join(f"{name.rpartition('.')[2]} {of_run[name]}" for name in varied if name in of_run)
        for run, of_run in settings.items()
    }


def note(sweep: Sweep) -> None:
    """Cache the names and labels of a sweep's runs for `noted`; not those of its pilot runs."""
    if sweep.is_pilot:
        return
    path = _notes(sweep.path, sweep.runs)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {str(file): _hash(file) for file in sorted(sweep.files)}
    storage.write_json(path, {"files": files, "cells": labels(sweep)}, NOTES, private=True)


def noted(path: Path, runs: Path | None = None) -> tuple[dict[str, str], Path]:
    """The labels of a sweep's runs, and the runs folder; of its pilot runs while no tuning is chosen.

    They come from the last `note` if no file has changed since. Else the sweep is expanded with the options
    that the source of its parts has, because importing the parts imports torch.
    """
    where: Path = runs or coerce("runs", _parse(path).get("runs", Sweep.runs), OWN["runs"])
    where = where.expanduser()
    with suppress(FileNotFoundError, Unreadable, OSError):  # without valid notes the sweep is expanded
        notes = storage.read_json(_notes(path, where), NOTES)
        if str(path.resolve()) in notes["files"] and all(
            _hash(Path(file)) == was for file, was in notes["files"].items()
        ):
            found = {str(run): str(label) for run, label in notes["cells"].items()}
            if not any("/" in run or run in ("", ".", "..") for run in found):
                return found, where
    sweep = read(path, runs, from_source=True, untuned=True)
    if sweep.pilot is not None and sweep.pilot.is_tuned:
        sweep = read(path, runs, from_source=True, pilot=not sweep.chosen)
    return labels(sweep), where


def _notes(path: Path, runs: Path) -> Path:
    return runs / ".jobs" / f"{path.stem}.json"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in OPTIONS:
            yield from _flat(value, f"{name}.")
        elif name != "slurm":
            yield prefix + name, value


def _checked(layer: Table, path: Path) -> Table:
    for name in layer:
        if (
            name in OWN or name in TABLES or name == "grid"
        ):  # the sweep's own keys have been removed from the top table
            raise ValueError(
                f"{name} (in {path.name}) is in a [[grid]] table but applies to the whole sweep: put it above"
            )
        known(f"setting (in {path.name})", name, {*annotations(), "reducers", "grid", *OWN, *TABLES})
    for name in ("reducers", "slurm", *OPTIONS):
        coerce(f"{name} (in {path.name})", layer.get(name, {}), dict[str, Any])
    for name in (part for part in PARTS if part in layer):
        for value in listed(name, layer[name], str):
            coerce(f"{name} (in {path.name})", value, str)
    for reducer, table in layer.get("reducers", {}).items():
        registry.check_name("reducers", reducer)
        coerce(f"reducers.{reducer} (in {path.name})", table, dict[str, Any])
    return layer


def _parse(path: Path) -> Table:
    try:
        return storage.read_toml(path, "a sweep")
    except FileNotFoundError as cause:
        examples = Path(__file__).parent / "sweeps"
        raise ValueError(f"there is no file {path}; example sweeps are in {examples}") from cause


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
