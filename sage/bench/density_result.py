"""What `sage bench density` found of one controller, for its table and its figure."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Held:
    """How one rule held one density on one trace."""

    trace: str
    ranks: int
    first: int
    """The step of the run with which the trace begins."""
    steps: int
    density: float
    rule: str
    mean: float
    """Density over its target, on average over the ranks and the steps after the warm ones."""
    within: float
    """Share of these steps in which it, on average over the ranks, was within the tolerance."""
    settles_up: int | None
    """Steps from a tenfold jump of the gradient's scale until it has settled; None where it did not."""
    settles_down: int | None
    """The same from a fall to a tenth, as where the learning rate drops and lr·gradient is reduced."""
    drop: int | None
    """The step of the trace at which the learning rate dropped by half or more; None where it did not."""
    settles_drop: int | None
    """The same from there on, in the gradients as they were recorded."""
    padding: float
    """Bytes of a gather that pads to the longest rank, over those of the selections."""
    sent: float
    """Bytes that the ranks handed over by the exchange that was asked for, over those of the selections."""
    seconds: float
    """Of a step's selection on one rank, the median."""
    over_select: float
    """That over the plain selection by a given threshold."""
    curve: list[float] = field(repr=False)
    """Density over target, step by step."""

    @property
    def label(self) -> str:
        """What a table and a figure call the trace."""
        return f"{self.trace}, W = {self.ranks}" + (f", from step {self.first}" if self.first else "")
