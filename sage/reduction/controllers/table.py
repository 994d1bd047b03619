"""The table of controllers, by their names in `--controller`."""

from .base import Controller
from .feedback import Feedback
from .published import Published
from .quantile import Quantile

CONTROLLERS: dict[str, type[Controller]] = {"sage": Published, "quantile": Quantile, "feedback": Feedback}
"""The controllers by their names in `--controller`."""
