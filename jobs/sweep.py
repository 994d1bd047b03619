"""A suite: a TOML file of a run's own keys, in which a list is expanded into cells, each one run.

    workload = "digits-ff"
    reducer = ["exact", "topk"]
    seed = [0, 1]
    parallel = 2                      # cells that run at once
    max_requeues = 3                  # how often a failed cell is tried again

    [reducers.topk]
    density = [0.01, 0.001]           # for topk alone: 2 cells of exact, 4 of topk

    [slurm]
    time = "1:30:00"                  # sbatch's own long names

Every list multiplies with every other. What is no such product goes into tables `[[grid]]`, each of which is
laid over the keys above and expanded on its own. For an option that takes a list, as `milestones`, a list is
one value, and a list of lists expands.
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
"""Keys that decide which options there are, and so are expanded first."""

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
"""Keys of the whole suite."""

NOTES = Kind(name="the notes of a suite", keys={"files": dict, "cells": dict}, cure="remove it")

Table = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite's cells, in the order of its file, each of them once."""

    path: Path
    cells: list[Config]
    runs: Path = Path("runs")
    parallel: int | None = None
    """How many cells may run at once; None: as many as SLURM lets."""
    max_requeues: int = 3
    max_cells: int = 10_000
    """How many combinations are expanded at most; more are refused before."""
    files: frozenset[Path]
    """What was read: the suite and its workloads."""

    @property
    def name(self) -> str:
        """The file's name, by which its jobs are called."""
        return self.path.stem


def read(
    path: Path,
    runs: Path | None = None,
    *,
    parallel: int | None = None,
    max_requeues: int | None = None,
    max_cells: int | None = None,
) -> Suite:
    """The suite in a file, its cells checked and resolved; what else is given goes before the file's own."""
    path = path.resolve()
    table = _parse(path)
    own = {name: table.pop(name) for name in OWN if name in table}
    given = {"runs": runs, "parallel": parallel, "max_requeues": max_requeues, "max_cells": max_cells}
    own |= {name: value for name, value in given.items() if value is not None}
    own = {name: coerce(name, value, OWN[name]) for name, value in own.items()}
    grids = table.pop("grid", [{}])
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise ValueError(f"grid (in {path.name}) is {grids!r}; allowed are tables that begin with [[grid]]")
    if "runs" in own:
        own["runs"] = own["runs"].expanduser()
    cells: dict[str, Config] = {}
    files = {path}
    reducers = set()
    layers = [_laid_over(_checked(table, path), _checked(grid, path)) for grid in grids]
    for layer in layers:
        if "workload" not in layer:
            raise ValueError(f"a suite needs a workload: one of {', '.join(workloads())}, or a TOML file")
    _check_size(layers, path, own.get("max_cells", Suite.max_cells))
    for layer in layers:
        for workload in _listed("workload", layer["workload"], str):
            named = not workload.endswith(".toml")
            found = workloads()[known("workload", workload, workloads())] if named else Path(workload)
            files.add(found.resolve())
        for cell in _cells(layer, own.get("runs", Suite.runs)):
            cells.setdefault(cell.folder.name, cell)
            reducers.add(cell.reducer)
    for reducer in {name for layer in (table, *grids) for name in layer.get("reducers", {})} - reducers:
        raise ValueError(
            f"[reducers.{reducer}] (in {path.name}) counts for no cell, as their reducers are "
            f"{', '.join(sorted(reducers))}: add {reducer!r} to reducer, or take the table out"
        )
    return Suite(path=path, cells=list(cells.values()), files=frozenset(files), **own)


def labels(suite: Suite) -> dict[str, str]:
    """For each cell, by its name, the settings in which it differs from others."""
    settings = {cell.folder.name: dict(_flat(cell.to_dict())) for cell in suite.cells}
    values: dict[str, set[str]] = {}
    for each in settings.values():
        for name, value in each.items():
            values.setdefault(name, set()).add(repr(value))
    varied = [
        name for name, found in values.items() if len(found) > 1 and name not in ("reducer", "workload")
    ]
    varied.sort(key=lambda name: "." not in name)  # options first
    return {
        cell: ", ".join(f"{name.rpartition('.')[2]} {each[name]}" for name in varied if name in each)
        for cell, each in settings.items()
    }


def note(suite: Suite) -> None:
    """Write down which cells there are, for `noted`."""
    path = _notes(suite.path, suite.runs)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {str(file): _hash(file) for file in sorted(suite.files)}
    storage.write_json(path, {"files": files, "cells": labels(suite)}, NOTES, private=True)


def noted(path: Path, runs: Path | None = None) -> tuple[dict[str, str], Path]:
    """The labels of a suite's cells, and where their folders are.

    Taken from the last `note` where no file has changed since: to expand a suite anew imports torch.
    """
    where: Path = runs or coerce("runs", _parse(path).get("runs", Suite.runs), OWN["runs"])
    where = where.expanduser()
    with suppress(FileNotFoundError, Unreadable, OSError):  # damaged notes are as good as none
        notes = storage.read_json(_notes(path, where), NOTES)
        if str(path.resolve()) in notes["files"] and all(
            _hash(Path(file)) == was for file, was in notes["files"].items()
        ):
            cells = {str(cell): str(label) for cell, label in notes["cells"].items()}
            if not any("/" in cell or cell in ("", ".", "..") for cell in cells):
                return cells, where
    return labels(read(path, runs)), where


def _notes(path: Path, runs: Path) -> Path:
    return runs / ".jobs" / f"{path.stem}.json"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in OPTIONS:
            yield from _flat(value, f"{name}.")
        elif name != "slurm":
            yield prefix + name, value


def _cells(layer: Table, runs: Path) -> Iterator[Config]:
    rest = {name: value for name, value in layer.items() if name in annotations() and name not in PARTS}
    if rest.get("fresh"):
        raise ValueError(
            "fresh is true: a requeued cell would begin anew; instead, remove the folders of cells to redo"
        )
    fixed = {"runs": runs, "slurm": rest.pop("slurm", {})}
    fields = {
        name: _listed(name, value, annotations()[name]) for name, value in rest.items() if name not in OPTIONS
    }
    for name, values in fields.items():
        if len(values) > 1 and ASIDE in get_args(annotations()[name]):
            raise ValueError(f"{name} is {values!r}; as it cannot change a result, allowed is one value")
    parts = {name: _listed(name, layer[name], str) for name in PARTS if name in layer}
    for chosen in _product(parts):
        first = {name: values[0] for name, values in fields.items()}
        base = load(chosen.pop("workload"), overrides={**first, **chosen, **fixed})
        axes = {(name, ""): values for name, values in fields.items()} | _option_axes(layer, base)
        for point in _product(axes):
            changed = {name: value for (name, option), value in point.items() if not option}
            for table in OPTIONS:
                given = {option: value for (name, option), value in point.items() if name == table and option}
                changed[table] = getattr(base, table) | given
            yield resolve(base, **changed)


def _check_size(layers: Iterable[Table], path: Path, most: int) -> None:
    """Refuse a suite of more combinations than are to be expanded, before expanding any."""
    count = sum(map(_count, layers))
    if count > most:
        raise ValueError(
            f"{path} has {count:,} combinations, and a suite may have {most:,}: shorten its lists, or raise "
            "max_cells (in the file, or --max-cells)"
        )


def _count(layer: Table) -> int:
    """How many combinations a layer has. Each is a product over lists, and so is not gone through."""
    settings = annotations()
    count = 1
    for name, value in layer.items():
        if name in settings and name not in (*PARTS, *OPTIONS, "slurm"):
            count *= len(_listed(name, value, settings[name]))
    count *= len(workloads_given := _listed("workload", layer["workload"], str))
    for table, room in OPTIONS.items():
        name = table.removesuffix("_options")
        if name in layer:
            count *= sum(_combinations(layer, table, room, part) for part in _listed(name, layer[name], str))
        else:  # the workload's own
            own = {getattr(load(each), name) for each in workloads_given}
            count *= max(_combinations(layer, table, room, part) for part in own)
    return count


def _combinations(layer: Table, table: str, room: registry.Room, part: str) -> int:
    """The product over the lists of a part's options."""
    valid = registry.options_of(room, part)
    count = 1
    for option, value in _options_of(layer, table, room, part).items():
        if option in valid:
            count *= len(_listed(option, value, valid[option].type))
    return count


def _options_of(layer: Table, table: str, room: registry.Room, part: str) -> Table:
    """What a layer says of a part's options."""
    given: Table = layer.get(table, {})
    if room == "reducers":
        given = layer.get("reducers", {}).get(part, {}) | given
    return given


def _option_axes(layer: Table, base: Config) -> dict[tuple[str, str], list[Any]]:
    """The values of each option of the three parts that this run has."""
    axes = {}
    for name, room in OPTIONS.items():
        part = getattr(base, name.removesuffix("_options"))
        given = _options_of(layer, name, room, part)
        valid = registry.options_of(room, part)
        for option, value in given.items():
            known(f"option of the {registry.KINDS[room]} {part}", option, valid)
            axes[name, option] = _listed(option, value, valid[option].type)
    return axes


def _product(axes: Mapping[Any, list[Any]]) -> Iterator[dict[Any, Any]]:
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _listed(name: str, value: Any, annotation: Any) -> list[Any]:
    """The values to expand: of what takes a list, only a list of lists is more than one."""
    if not isinstance(value, list):
        return [value]
    if takes_list(annotation):
        return value if value and all(isinstance(each, list) for each in value) else [value]
    if not value:
        raise ValueError(f"{name} is an empty list, which makes no cell; leave it out, or give values")
    return value


def _laid_over(below: Table, above: Table) -> Table:
    """Two tables as one, in which the second's values go first, within inner tables too."""
    both = {
        name: _laid_over(below[name], value) if {type(below.get(name)), type(value)} == {dict} else value
        for name, value in above.items()
    }
    return below | both


def _checked(layer: Table, path: Path) -> Table:
    for name in layer:
        if name in OWN or name == "grid":  # which the whole suite's keys are rid of by now
            raise ValueError(
                f"{name} (in {path.name}) stands in a [[grid]]; it is the whole suite's: put it above"
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
        return storage.read_toml(path, "a suite")
    except FileNotFoundError as cause:
        here = Path(__file__).parent / "suites"
        raise ValueError(f"there is no file {path}; suites to start from are in {here}") from cause


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
