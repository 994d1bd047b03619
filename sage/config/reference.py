"""Which runs are dense references: what a user would run without compression."""

from collections.abc import Mapping
from typing import Any

REFERENCES = ("bf16", "exact")
"""The reducers that serve as a reference."""

DENSE = (*REFERENCES, "fp16")
"""The reducers that send every element, and are not counted as compression."""


def is_overlapped(config: Mapping[str, Any]) -> bool:
    """Whether the communication of a run overlaps with backward; the configuration is that of config.json."""
    return config.get("mount", "whole") == "ddp"


def is_reference(config: Mapping[str, Any]) -> bool:
    """Whether a run is a dense reference, which reduces every step; the configuration is that of config.json.

    A run with local updates is not, whatever its reducer: it communicates in some steps only.
    """
    return config["reducer"] in REFERENCES and not is_local(config)


def is_local(config: Mapping[str, Any]) -> bool:
    """Whether a run has local updates; the configuration is that of config.json."""
    return config.get("local_steps") is not None
