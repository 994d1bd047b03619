"""Checks the options of a run's reducer, model and data set, and writes their defaults in."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import registry, validate
from ..output.text import clean_text
from .run_config import OPTIONED, PARTS, Config, annotations


def part_options(config: Config) -> dict[str, Mapping[str, registry.Option]]:
    """The options that the run's reducer, model and data set take; this imports all three."""
    found = {part: registry.options_of(PARTS[part], getattr(config, part)) for part in OPTIONED}
    if clash := sorted(set(found["reducer"]) & set(annotations())):
        raise ValueError(
            f"the reducer {config.reducer!r} has options with a run's own names: {', '.join(clash)}"
        )
    return found


def resolve(config: Config, **changes: Any) -> Config:
    """The same run with its parts' options checked and their defaults written in, which its hash takes in.

    Changes, but not of the parts themselves, can be made in the same go: a sweep has thousands of them.
    """
    part_options(config)
    checked: dict[str, Any] = {}
    for part in OPTIONED:
        room = PARTS[part]
        given = changes.get(f"{part}_options", getattr(config, f"{part}_options"))
        checked[f"{part}_options"] = registry.check_options(room, getattr(config, part), given)
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
