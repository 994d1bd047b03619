"""The controllers that `sage bench density` compares, with the options of the reducer `sage` for each."""

from typing import Any

RIGHT = "right"
"""Stands for the λ_0 with which the first gradient, averaged over the ranks, has the target density."""

RULES: dict[str, dict[str, Any]] = {
    "sage": {"controller": "sage"},
    "sage, λ_0 right": {"controller": "sage", "threshold": RIGHT},
    "sage, agreed": {"controller": "sage", "agree": True},
    "feedback": {"controller": "feedback"},
    "feedback, agreed": {"controller": "feedback", "agree": True},
    "quantile": {"controller": "quantile"},
    "quantile, agreed": {"controller": "quantile", "agree": True},
}
"""The compared controllers by their names in tables; `sage` is the published rule."""
