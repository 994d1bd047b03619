"""The controllers that `sage bench density` compares, with the options of the reducer `sage` for each."""

from typing import Any

RIGHT = "right"
"""Stands for the λ_0 that selects as much as is asked for of the first gradient, averaged over the ranks."""

RULES: dict[str, dict[str, Any]] = {
    "sage": {"controller": "sage"},
    "sage, λ_0 right": {"controller": "sage", "threshold": RIGHT},
    "sage, agreed": {"controller": "sage", "agree": True},
    "feedback": {"controller": "feedback"},
    "feedback, agreed": {"controller": "feedback", "agree": True},
    "quantile": {"controller": "quantile"},
    "quantile, agreed": {"controller": "quantile", "agree": True},
}
"""The controllers that are compared, by the names that a table gives them; `sage` is the published rule."""
