"""Expands a table of a sweep into the configurations of runs: the Cartesian product of its lists."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, get_args

from sage import registry
from sage.config import NOT_HASHED, Config, annotations, load, resolve
from sage.validate import known, takes_list

PARTS = ("workload", "model", "data", "reducer")
"""Keys that determine which options exist, and are therefore expanded first."""

FIRST = (*PARTS, "local")
"""The same, and the preset of local updates, whose settings are then below those of the sweep."""

OPTIONS: dict[str, registry.PartKind] = {
    "model_options": "models",
    "data_options": "datasets",
    "reducer_options": "reducers",
}

Table = dict[str, Any]


def expand(layer: Table, runs: Path, from_source: bool) -> Iterator[Config]:
    """Yield the validated configuration of each combination.

    Raises:
        ValueError: a key, an option or a value is invalid.
    """
    rest = {name: value for name, value in layer.items() if name in annotations() and name not in FIRST}
    if rest.get("fresh"):
        raise ValueError(
            "fresh is true, but requeued runs must resume: leave it out, and remove the folders to redo"
        )
    fixed = {"runs": runs, "slurm": rest.pop("slurm", {})}
    fields = {
        name: listed(name, value, annotations()[name]) for name, value in rest.items() if name not in OPTIONS
    }
    for name, values in fields.items():
        if len(values) > 1 and NOT_HASHED in get_args(annotations()[name]):
            raise ValueError(f"{name} is {values!r}; allowed is one value, because it cannot change a result")
    parts = {name: listed(name, layer[name], str) for name in FIRST if name in layer}
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


def check_size(layers: Iterable[Table], path: Path, most: int, from_source: bool) -> None:
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
            count *= len(listed(name, value, settings[name]))
    count *= len(workloads_given := listed("workload", layer["workload"], str))
    for table, kind in OPTIONS.items():
        name = table.removesuffix("_options")
        if name in layer:
            given = listed(name, layer[name], str)
            count *= sum(_combinations(layer, table, kind, part, from_source) for part in given)
        else:  # the workload sets the part
            own = {getattr(load(workload), name) for workload in workloads_given}
            count *= max(_combinations(layer, table, kind, part, from_source) for part in own)
    return count


def _combinations(layer: Table, table: str, kind: registry.PartKind, part: str, from_source: bool) -> int:
    """The number of combinations of a part's options."""
    valid = registry.options_of(kind, part, from_source=from_source)
    count = 1
    for option, value in _options_of(layer, table, kind, part).items():
        if option in valid:
            count *= len(listed(option, value, valid[option].type))
    return count


def _options_of(layer: Table, table: str, kind: registry.PartKind, part: str) -> Table:
    """The options that a layer sets for a part."""
    given: Table = layer.get(table, {})
    if kind == "reducers":
        given = layer.get("reducers", {}).get(part, {}) | given
    return given


def _option_axes(layer: Table, base: Config, from_source: bool) -> dict[tuple[str, str], list[Any]]:
    """The values of each option of this run's model, data set and reducer."""
    axes = {}
    for name, kind in OPTIONS.items():
        part = getattr(base, name.removesuffix("_options"))
        given = _options_of(layer, name, kind, part)
        valid = registry.options_of(kind, part, from_source=from_source)
        for option, value in given.items():
            known(f"option of the {registry.KINDS[kind]} {part}", option, valid)
            axes[name, option] = listed(option, value, valid[option].type)
    return axes


def _product(axes: Mapping[Any, list[Any]]) -> Iterator[dict[Any, Any]]:
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def listed(name: str, value: Any, annotation: Any) -> list[Any]:
    """The values to expand. For an option that takes a list, only a list of lists has several."""
    if not isinstance(value, list):
        return [value]
    if takes_list(annotation):
        return value if value and all(isinstance(item, list) for item in value) else [value]
    if not value:
        raise ValueError(f"{name} is an empty list, which expands to no run; leave it out, or give values")
    return value


def merged(base: Table, override: Table) -> Table:
    """Both tables merged, nested tables too; the second's values take precedence."""
    both = {
        name: merged(base[name], value) if {type(base.get(name)), type(value)} == {dict} else value
        for name, value in override.items()
    }
    return base | both
