"""The pilot runs of a sweep: they fix the target, and choose each method's tuning, before the comparison.

    [pilot]
    seed = [100, 101, 102]            # other seeds than those of the comparison
    fraction = 0.99                   # the target: 99 % of the median of the reference's final metrics
    rule = "median"                   # or "worst": the worst of its final metrics

    [pilot.grid]                      # optional: at most 5 points, the same number for every method
    lr = [0.05, 0.1, 0.2]

    [pilot.grids.topk]                # optional: other points for one reducer
    lr = [0.1, 0.2, 0.4]

Without a grid, only the reference has pilot runs. `sage submit --pilot` runs them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from sage import registry
from sage.config import NOT_HASHED, REFERENCES, Config, annotations, is_overlapped, is_reference, resolve
from sage.jobs.expansion import OPTIONS, PARTS, Table, listed
from sage.validate import Range, coerce, known

MAX_POINTS = 5
"""The largest tuning budget of a method, in points of its grid."""

Rule = Literal["median", "worst"]
Fraction = Annotated[float, Range(0, 1, open="(")]
Seeds = tuple[Annotated[int, Range(0, 2**32 - 1)], ...]

KEYS: dict[str, Any] = {
    "seed": Seeds,
    "rule": Rule,
    "fraction": Fraction,
    "grid": dict[str, Any],
    "grids": dict[str, Any],
}
"""Keys of the table [pilot]."""

Point = dict[str, Any]
"""The values of the tuned keys, by name."""


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """The table [pilot] of a sweep."""

    seed: Seeds
    rule: Rule = "median"
    fraction: float = 0.99
    grid: Table = field(default_factory=dict)
    grids: Table = field(default_factory=dict)

    def points(self, reducer: str) -> list[Point]:
        """The points to try for a reducer; one empty point without a grid."""
        axes = self.grids.get(reducer, self.grid)
        return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]

    @property
    def is_tuned(self) -> bool:
        """Whether there is a grid."""
        return bool(self.grid or self.grids)


def parse(table: Any, path: Path) -> Pilot:
    """Make a Pilot from the table of a sweep's file.

    Raises:
        ValueError: a key or value is invalid.
    """
    where = f"in {path.name}"
    coerce(f"pilot ({where})", table, dict[str, Any])
    values = {}
    for name, value in table.items():
        known(f"key of [pilot] ({where})", name, KEYS)
        values[name] = coerce(f"pilot.{name} ({where})", value, KEYS[name])
    if not values.get("seed"):
        raise ValueError(f"[pilot] ({where}) needs seed, a list of seeds that the comparison does not use")
    for name in ("grid", "grids"):
        grids = {"": values.get("grid", {})} if name == "grid" else values.get("grids", {})
        for reducer, grid in grids.items():
            label = f"pilot.{name}{f'.{reducer}' if reducer else ''} ({where})"
            coerce(label, grid, dict[str, Any])
            grids[reducer] = {key: _axis(label, key, value) for key, value in grid.items()}
        values[name] = grids.get("", {}) if name == "grid" else grids
    return Pilot(**values)


def _axis(label: str, key: str, value: Any) -> list[Any]:
    own = {name for name, kind in annotations().items() if NOT_HASHED in get_args(kind)}
    fixed = {*PARTS, *OPTIONS, *own, "task", "seed", "world_size"}
    known(f"tuned key of {label}", key, [name for name in annotations() if name not in fixed])
    return [coerce(key, item, annotations()[key]) for item in listed(key, value, annotations()[key])]


def check(pilot: Pilot, configs: Iterable[Config], path: Path) -> None:
    """Refuse pilot seeds that the comparison uses too, and unequal or too large tuning budgets.

    Raises:
        ValueError: with what is wrong, in one line.
    """
    configs = list(configs)
    if shared := sorted({*pilot.seed} & {config.seed for config in configs}):
        raise ValueError(
            f"pilot.seed (in {path.name}) has {', '.join(map(str, shared))}, which the comparison uses too; "
            "a target must be fixed on other seeds: choose others for [pilot]"
        )
    reducers = {registry.short(config.reducer): None for config in configs}
    for reducer in pilot.grids:
        known(f"reducer of pilot.grids (in {path.name})", reducer, reducers)
    budgets = {reducer: len(pilot.points(reducer)) for reducer in reducers}
    if max(budgets.values()) > MAX_POINTS or len(set(budgets.values())) > 1:
        shown = ", ".join(f"{reducer} {count}" for reducer, count in budgets.items())
        raise ValueError(
            f"the tuning budgets (in {path.name}) are {shown} points; allowed is the same number for every "
            f"method, at most {MAX_POINTS}: change [pilot.grid] or [pilot.grids]"
        )


def method(config: Config) -> str:
    """The name of a method: that of its run with seed 0, before tuning."""
    return replace(config, seed=0).folder.name


def reference(configs: Iterable[Config]) -> dict[tuple[str, int], Config]:
    """The reference of each workload and number of ranks: the first of the most preferred kind.

    bf16 that overlaps with backward is preferred, then exact that does, then bf16, then exact.
    """
    found: dict[tuple[str, int], Config] = {}
    for config in sorted(configs, key=_preference):
        if is_reference(config.to_dict()):
            found.setdefault((config.workload, config.world_size), config)
    return found


def _preference(config: Config) -> tuple[bool, int]:
    values = config.to_dict()
    return (
        not is_overlapped(values),
        REFERENCES.index(config.reducer) if is_reference(values) else len(REFERENCES),
    )


def pilot_runs(
    pilot: Pilot, configs: Iterable[Config], from_source: bool
) -> Iterator[tuple[Config, Point, Config]]:
    """Yield each pilot run: its method's configuration, the tuning point, and its own configuration."""
    configs = list(configs)
    methods = {method(config): config for config in configs} if pilot.is_tuned else {}
    methods |= {method(config): config for config in reference(configs).values()}
    for base in methods.values():
        for point in pilot.points(registry.short(base.reducer)):
            for seed in pilot.seed:
                yield base, point, resolve(base, from_source=from_source, seed=seed, **point)


def tuned(
    configs: Iterable[Config], chosen: Mapping[str, Point], path: Path, from_source: bool
) -> Iterator[Config]:
    """Yield the comparison's configurations with the chosen point of their method.

    Raises:
        ValueError: no point is chosen for a method.
    """
    for config in configs:
        if method(config) not in chosen:
            raise ValueError(
                f"no tuning point is chosen for {method(config)} (in {path.name}); run `sage submit "
                f"{path.name} --pilot`, and when its runs are finished `sage target {path.name}`"
            )
        yield resolve(config, from_source=from_source, **chosen[method(config)])
