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
