"""Which runs are dense references: what a user would run without compression."""

from collections.abc import Mapping
from typing import Any

from .optimization import EXCHANGING

REFERENCES = ("bf16", "exact")
"""The reducers that serve as a reference."""

DENSE = (*REFERENCES, "fp16")
"""The reducers that send every element, and are not counted as compression."""


def is_overlapped(config: Mapping[str, Any]) -> bool:
    """Whether the communication of a run overlaps with backward; the configuration is that of config.json."""
    return config.get("mount", "whole") == "ddp"


def is_reference(config: Mapping[str, Any]) -> bool:
    """Whether a run is a dense reference, reducing each step; the configuration is that of config.json."""
    return config["reducer"] in REFERENCES and reduces_gradients(config)


def reduces_gradients(config: Mapping[str, Any]) -> bool:
    """Whether the reducer of a run reduces every step's gradient; the configuration is that of config.json.

    With local updates it reduces in some steps only, and with an optimiser that communicates in none.
    """
    return not is_local(config) and config.get("optimizer") not in EXCHANGING


def is_local(config: Mapping[str, Any]) -> bool:
    """Whether a run has local updates; the configuration is that of config.json."""
    return config.get("local_steps") is not None
