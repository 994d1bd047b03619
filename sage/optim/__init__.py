"""Optimisers for one's own script whose ranks exchange what they step with, instead of the gradient."""

from typing import Any

from sage.optim.onebit_adam import OneBitAdam as OneBitAdam

BY_NAME: dict[str, Any] = {OneBitAdam.name: OneBitAdam}
"""The optimisers by their names in `sage run --optimizer`."""
