"""Optimisers for one's own script whose ranks exchange what they step with, instead of the gradient."""

from typing import Any

from sage.optim.demo import DeMo as DeMo
from sage.optim.dion import Dion as Dion
from sage.optim.onebit_adam import OneBitAdam as OneBitAdam
from sage.optim.onebit_lamb import OneBitLamb as OneBitLamb
from sage.optim.zeroone_adam import ZeroOneAdam as ZeroOneAdam

BY_NAME: dict[str, Any] = {each.name: each for each in (OneBitAdam, ZeroOneAdam, OneBitLamb, DeMo, Dion)}
"""The optimisers by their names in `sage run --optimizer`."""
