"""Checks the options of a run's reducer, model and data set, and fills in their defaults."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import registry, validate
from ..output.text import clean_text
from .field_types import OPTIONED, PARTS
from .run_config import Config, annotations


def part_options(config: Config, *, from_source: bool = False) -> dict[str, Mapping[str, registry.Option]]:
    """Return the options of the run's reducer, model and data set, read from their source or by import."""
    found = {
        part: registry.options_of(PARTS[part], getattr(config, part), from_source=from_source)
        for part in OPTIONED
    }
    if clash := sorted(set(found["reducer"]) & set(annotations())):
        raise ValueError(
            f"the reducer {config.reducer!r} has options with the names of settings: {', '.join(clash)}"
        )
    return found


def recorded(values: dict[str, Any]) -> Config:
    """Make a configuration from a run's `config.json`.

    An option of a part that did not exist when the run was recorded gets the value of its mark
    `sage.validate.Before`, which reproduces the run.

    Raises:
        ValueError: if a field is unknown, has an invalid value, or is missing and has no default.
    """
    config = Config.from_dict(values)
    options: dict[str, Any] = {
        f"{part}_options": registry.recorded_options(
            PARTS[part], getattr(config, part), getattr(config, f"{part}_options")
        )
        for part in OPTIONED
    }
    return replace(config, **options)


def resolve(config: Config, *, from_source: bool = False, **changes: Any) -> Config:
    """Return the same run with checked part options and their defaults, which are included in its hash.

    `changes` are applied in the same call, because a sweep has thousands of them; they must not replace the
    parts themselves.

    Args:
        from_source: read the options from the source of the parts where possible, which does not import
            torch. The types of the options are then checked, but not the checks that a part itself makes.

    Raises:
        ValueError: if there is no such part, or an option is invalid.
    """
    part_options(config, from_source=from_source)
    checked: dict[str, Any] = {}
    for part in OPTIONED:
        kind = PARTS[part]
        given = changes.get(f"{part}_options", getattr(config, f"{part}_options"))
        checked[f"{part}_options"] = registry.check_options(
            kind, getattr(config, part), given, from_source=from_source
        )
    if from_source:
        return replace(config, **{**changes, **checked})
    registry.load("tasks", config.task)
    # Constructed only to check the ranges of its options here, before the ranks start.
    make = registry.load("reducers", config.reducer)
    try:
        make(**checked["reducer_options"])
    except ValueError:
        raise
    except Exception as error:  # third-party reducers may raise any exception
        reason = f"{type(error).__name__}: {clean_text(str(error))}"
        name, options = registry.short(config.reducer), validate.shown(checked["reducer_options"])
        raise ValueError(f"the reducer {name} does not take the options {options}: {reason}") from error
    return replace(config, **{**changes, **checked})
