"""The share of the training time in which a run waits for its data."""

from collections.abc import Mapping

LARGE_SHARE = 0.1
"""Share from which a run and a report say that the run waited for its data."""


def loader_share(loader_seconds: float, step_seconds: float) -> float | None:
    """Return the share of the time of the steps in which a rank waits for its batches; None if unknown.

    Args:
        loader_seconds: Time in which the rank waits for batches; it is not part of the step times.
        step_seconds: The times of the same steps.

    >>> loader_share(1.0, 3.0)
    0.25
    """
    total = loader_seconds + step_seconds
    return loader_seconds / total if total > 0 else None


def waited(share: float, data_options: Mapping[str, object]) -> str:
    """Say that a run waited for its data, and which option of its data set may help."""
    remedy = ""
    if "loaders" in data_options:
        remedy = f"; it has --data.loaders {data_options['loaders']}: more may help, up to the free cores"
    return f"waited for its data for {100 * share:.0f} % of the time, which step times leave out{remedy}"
