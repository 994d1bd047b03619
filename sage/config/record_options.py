"""Options of what is recorded of a run that were added after `Config` had its own."""

from dataclasses import dataclass
from typing import Annotated

from ..validate import LATER
from .field_types import NOT_HASHED, Count


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """Fields of a run's configuration that `Config` inherits."""

    # Record
    track: Annotated[tuple[str, ...], LATER, NOT_HASHED] = ()
    """Send the figures to these trackers too: wandb, mlflow, or a module that exports a TRACKER."""
    vnmse_every: Annotated[Count | None, LATER] = None
    """Steps between two measurements of the reduced gradient's error, against an exact mean outside of the
    ledger and the step time; if omitted, there are none."""
