"""Checks the options of a run's reducer, model and data set, and writes their defaults in."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import registry, validate
from ..output.text import clean_text
from .run_config import OPTIONED, PARTS, Config, annotations


def part_options(config: Config, *, from_source: bool = False) -> dict[str, Mapping[str, registry.Option]]:
    """The options that the run's reducer, model and data set take; read from their source, or imported."""
    found = {
        part: registry.options_of(PARTS[part], getattr(config, part), from_source=from_source)
        for part in OPTIONED
    }
    if clash := sorted(set(found["reducer"]) & set(annotations())):
        raise ValueError(
            f"the reducer {config.reducer!r} has options with a run's own names: {', '.join(clash)}"
        )
    return found


def resolve(config: Config, *, from_source: bool = False, **changes: Any) -> Config:
    """The same run with its parts' options checked and their defaults written in, which its hash takes in.

    Changes, but not of the parts themselves, can be made in the same go: a sweep has thousands of them.

    Args:
        from_source: read the options from the parts' source where that is possible, which takes no import of
            torch. The types of options are then checked, but not what a part itself refuses.

    Raises:
        ValueError: where there is no such part, or an option is wrong.
    """
    part_options(config, from_source=from_source)
    checked: dict[str, Any] = {}
    for part in OPTIONED:
        room = PARTS[part]
        given = changes.get(f"{part}_options", getattr(config, f"{part}_options"))
        checked[f"{part}_options"] = registry.check_options(
            room, getattr(config, part), given, from_source=from_source
        )
    if from_source:
        return replace(config, **{**changes, **checked})
    registry.load("tasks", config.task)
    # Built only so that it checks its options' ranges here, and not when the ranks have started.
    make = registry.load("reducers", config.reducer)
    try:
        make(**checked["reducer_options"])
    except ValueError:
        raise
    except Exception as error:  # a reducer may be anybody's
        said = f"{type(error).__name__}: {clean_text(str(error))}"
        name, options = registry.short(config.reducer), validate.shown(checked["reducer_options"])
        raise ValueError(f"the reducer {name} does not take the options {options}: {said}") from error
    return replace(config, **{**changes, **checked})
