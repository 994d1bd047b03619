"""Reads the configuration of a run from a workload's TOML file, a second TOML file and overrides."""

from pathlib import Path
from typing import Any

from .. import registry, validate
from ..registry import workloads as workloads
from ..storage import read_toml
from ..validate import coerce, known
from .field_types import OPTIONED, PARTS
from .local_presets import with_preset
from .run_config import Config, annotations


def load(workload: str, *, file: Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Load the configuration of a workload (a name or a TOML file), then apply a second file and overrides.

    The options of a part belong to that part: if a later layer selects another part, they are dropped. A
    table `[reducers.NAME]` is used only if NAME is the reducer.
    """
    named = not workload.endswith(".toml")
    path = workloads()[known("workload", workload, workloads())] if named else validate.path(workload)
    layers = [_read(path), *([_read(file)] if file else []), _checked(dict(overrides or {}), "the overrides")]
    merged: dict[str, Any] = {"reducer": Config.reducer}
    for layer in layers:
        merged |= layer
    current: dict[str, Any] = {"reducer": Config.reducer}
    options: dict[str, dict[str, Any]] = {part: {} for part in OPTIONED}
    for layer in layers:
        options["reducer"] |= layer.get("reducers", {}).get(merged["reducer"], {})
        for part in OPTIONED:
            current[part] = layer.get(part, current.get(part))
            if current[part] == merged.get(part):
                options[part] |= layer.get(f"{part}_options", {})
    merged |= {f"{part}_options": given for part, given in options.items()}
    merged["slurm"] = {name: value for layer in layers for name, value in layer.get("slurm", {}).items()}
    merged.pop("reducers", None)
    config = Config.from_dict({**merged, "workload": path.stem})
    for part, kind in PARTS.items():
        registry.check_name(kind, getattr(config, part))
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        table = read_toml(path, "a TOML file of a run's settings")
    except FileNotFoundError as cause:
        raise ValueError(
            f"there is no file {path}; the built-in workloads are {', '.join(workloads())}"
        ) from cause
    return _checked(table, path.name)


def _checked(layer: dict[str, Any], source: str) -> dict[str, Any]:
    """Check a layer's names and tables before it is merged with others; make paths of parts absolute."""
    for name in layer:
        known(f"setting (in {source})", name, (set(annotations()) | {"reducers"}) - {"workload"})
    for name in ("reducers", "slurm", *(f"{part}_options" for part in OPTIONED)):
        coerce(f"{name} (in {source})", layer.get(name, {}), dict[str, Any])
    for reducer, table in layer.get("reducers", {}).items():
        registry.check_name("reducers", reducer)
        coerce(f"reducers.{reducer} (in {source})", table, dict[str, Any])
    for part in PARTS:
        if part in layer:
            layer |= {part: registry.located(coerce(f"{part} (in {source})", layer[part], str))}
    layer = with_preset(layer)
    if "reducers" in layer:
        layer |= {"reducers": {registry.located(name): table for name, table in layer["reducers"].items()}}
    return layer
