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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args

from sage import registry, storage
from sage.config import ASIDE, Config, Count, annotations, load, resolve, workloads
from sage.storage import Kind, Unreadable
from sage.validate import Range, coerce, known, takes_list

PARTS = ("workload", "model", "data", "reducer")
"""Keys that determine which options exist, and are therefore expanded first."""

OPTIONS: dict[str, registry.Room] = {
    "model_options": "models",
    "data_options": "datasets",
    "reducer_options": "reducers",
}
OWN: dict[str, Any] = {
    "parallel": Count,
    "max_requeues": Annotated[int, Range(0)],
    "max_cells": Count,
    "runs": Path,
}
"""Keys of the sweep itself. `max_cells` limits the number of runs."""

NOTES = Kind(name="the notes of a sweep", keys={"files": dict, "cells": dict}, cure="remove it")
"""The cached expansion of a sweep: hashes of the files read, and each run's label under `cells`."""

Table = dict[str, Any]


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

    @property
    def name(self) -> str:
        """The file's stem, which is part of the jobs' name."""
        return self.path.stem


def read(
    path: Path,
    runs: Path | None = None,
    *,
    parallel: int | None = None,
    max_requeues: int | None = None,
    max_cells: int | None = None,
    from_source: bool = False,
) -> Sweep:
    """Read a sweep; its configurations are validated and resolved. Arguments override the file's keys.

    Raises:
        ValueError: a key or value is invalid, or the sweep has more than `max_cells` combinations.
    """
    path = path.resolve()
    table = _parse(path)
    own = {name: table.pop(name) for name in OWN if name in table}
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
    layers = [_merged(_checked(table, path), _checked(grid, path)) for grid in grids]
    for layer in layers:
        if "workload" not in layer:
            raise ValueError(f"a sweep needs a workload: one of {', '.join(workloads())}, or a TOML file")
    _check_size(layers, path, own.get("max_cells", Sweep.max_cells), from_source)
    for layer in layers:
        for workload in _listed("workload", layer["workload"], str):
            named = not workload.endswith(".toml")
            found = workloads()[known("workload", workload, workloads())] if named else Path(workload)
            files.add(found.resolve())
        for config in _expand(layer, own.get("runs", Sweep.runs), from_source):
            configs.setdefault(config.folder.name, config)
            reducers.add(config.reducer)
    for reducer in {name for layer in (table, *grids) for name in layer.get("reducers", {})} - reducers:
        raise ValueError(
            f"[reducers.{reducer}] (in {path.name}) applies to no run; the runs' reducers are "
            f"{', '.join(sorted(reducers))}: add {reducer!r} to reducer, or remove the table"
        )
    return Sweep(path=path, configs=list(configs.values()), files=frozenset(files), **own)


def labels(sweep: Sweep) -> dict[str, str]:
    """For each run, by name, the settings that vary within the sweep."""
    settings = {config.folder.name: dict(_flat(config.to_dict())) for config in sweep.configs}
    values: dict[str, set[str]] = {}
    for each in settings.values():
        for name, value in each.items():
            values.setdefault(name, set()).add(repr(value))
    varied = [
        name for name, found in values.items() if len(found) > 1 and name not in ("reducer", "workload")
    ]
    varied.sort(key=lambda name: "." not in name)  # options first
    return {
        run: ", ".join(f"{name.rpartition('.')[2]} {each[name]}" for name in varied if name in each)
        for run, each in settings.items()
    }


def note(sweep: Sweep) -> None:
    """Cache the names and labels of a sweep's runs for `noted`."""
    path = _notes(sweep.path, sweep.runs)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {str(file): _hash(file) for file in sorted(sweep.files)}
    storage.write_json(path, {"files": files, "cells": labels(sweep)}, NOTES, private=True)


def noted(path: Path, runs: Path | None = None) -> tuple[dict[str, str], Path]:
    """The labels of a sweep's runs, and the runs folder.

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
    return labels(read(path, runs, from_source=True)), where


def _notes(path: Path, runs: Path) -> Path:
    return runs / ".jobs" / f"{path.stem}.json"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in OPTIONS:
            yield from _flat(value, f"{name}.")
        elif name != "slurm":
            yield prefix + name, value


def _expand(layer: Table, runs: Path, from_source: bool) -> Iterator[Config]:
    rest = {name: value for name, value in layer.items() if name in annotations() and name not in PARTS}
    if rest.get("fresh"):
        raise ValueError(
            "fresh is true, but requeued runs must resume: leave it out, and remove the folders to redo"
        )
    fixed = {"runs": runs, "slurm": rest.pop("slurm", {})}
    fields = {
        name: _listed(name, value, annotations()[name]) for name, value in rest.items() if name not in OPTIONS
    }
    for name, values in fields.items():
        if len(values) > 1 and ASIDE in get_args(annotations()[name]):
            raise ValueError(f"{name} is {values!r}; allowed is one value, because it cannot change a result")
    parts = {name: _listed(name, layer[name], str) for name in PARTS if name in layer}
    for chosen in _product(parts):
        first = {name: values[0] for name, values in fields.items()}
        base = load(chosen.pop("workload"), overrides={**first, **chosen, **fixed})
        axes = {(name, ""): values for name, values in fields.items()}
        axes |= _option_axes(layer, base, from_source)
        for point in _product(axes):
            changed = {name: value for (name, option), value in point.items() if not option}
            for table in OPTIONS:
                given = {option: value for (name, option), value in point.items() if name == table and option}
                changed[table] = getattr(base, table) | given
            yield resolve(base, from_source=from_source, **changed)


def _check_size(layers: Iterable[Table], path: Path, most: int, from_source: bool) -> None:
    """Refuse a sweep with more than `most` combinations before expanding it."""
    count = sum(_count(layer, from_source) for layer in layers)
    if count > most:
        raise ValueError(
            f"{path} has {count:,} combinations; allowed are {most:,}: shorten its lists, or raise max_cells "
            "(in the file, or --max-cells)"
        )


def _count(layer: Table, from_source: bool) -> int:
    """The number of a layer's combinations, computed as a product of lengths without expanding them."""
    settings = annotations()
    count = 1
    for name, value in layer.items():
        if name in settings and name not in (*PARTS, *OPTIONS, "slurm"):
            count *= len(_listed(name, value, settings[name]))
    count *= len(workloads_given := _listed("workload", layer["workload"], str))
    for table, room in OPTIONS.items():
        name = table.removesuffix("_options")
        if name in layer:
            given = _listed(name, layer[name], str)
            count *= sum(_combinations(layer, table, room, part, from_source) for part in given)
        else:  # the workload sets the part
            own = {getattr(load(each), name) for each in workloads_given}
            count *= max(_combinations(layer, table, room, part, from_source) for part in own)
    return count


def _combinations(layer: Table, table: str, room: registry.Room, part: str, from_source: bool) -> int:
    """The number of combinations of a part's options."""
    valid = registry.options_of(room, part, from_source=from_source)
    count = 1
    for option, value in _options_of(layer, table, room, part).items():
        if option in valid:
            count *= len(_listed(option, value, valid[option].type))
    return count


def _options_of(layer: Table, table: str, room: registry.Room, part: str) -> Table:
    """The options that a layer sets for a part."""
    given: Table = layer.get(table, {})
    if room == "reducers":
        given = layer.get("reducers", {}).get(part, {}) | given
    return given


def _option_axes(layer: Table, base: Config, from_source: bool) -> dict[tuple[str, str], list[Any]]:
    """The values of each option of this run's model, data set and reducer."""
    axes = {}
    for name, room in OPTIONS.items():
        part = getattr(base, name.removesuffix("_options"))
        given = _options_of(layer, name, room, part)
        valid = registry.options_of(room, part, from_source=from_source)
        for option, value in given.items():
            known(f"option of the {registry.KINDS[room]} {part}", option, valid)
            axes[name, option] = _listed(option, value, valid[option].type)
    return axes


def _product(axes: Mapping[Any, list[Any]]) -> Iterator[dict[Any, Any]]:
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _listed(name: str, value: Any, annotation: Any) -> list[Any]:
    """The values to expand. For an option that takes a list, only a list of lists has several."""
    if not isinstance(value, list):
        return [value]
    if takes_list(annotation):
        return value if value and all(isinstance(each, list) for each in value) else [value]
    if not value:
        raise ValueError(f"{name} is an empty list, which expands to no run; leave it out, or give values")
    return value


def _merged(base: Table, override: Table) -> Table:
    """Both tables merged, nested tables too; the second's values take precedence."""
    both = {
        name: _merged(base[name], value) if {type(base.get(name)), type(value)} == {dict} else value
        for name, value in override.items()
    }
    return base | both


def _checked(layer: Table, path: Path) -> Table:
    for name in layer:
        if name in OWN or name == "grid":  # the sweep's own keys have been removed from the top table
            raise ValueError(
                f"{name} (in {path.name}) is in a [[grid]] table but applies to the whole sweep: put it above"
            )
        known(f"setting (in {path.name})", name, {*annotations(), "reducers", "grid", *OWN})
    for name in ("reducers", "slurm", *OPTIONS):
        coerce(f"{name} (in {path.name})", layer.get(name, {}), dict[str, Any])
    for name in (part for part in PARTS if part in layer):
        for value in _listed(name, layer[name], str):
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
