"""The result of `sage bench density` for one controller, for its table and figure."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DensityResult:
    """One controller at one target density on one trace."""

    trace: str
    ranks: int
    first: int
    """The run's step at which the trace begins."""
    steps: int
    density: float
    rule: str
    mean: float
    """Achieved density / target, averaged over the ranks and the steps after the warm-up."""
    within: float
    """Share of these steps whose density, averaged over the ranks, is within the tolerance."""
    settles_up: int | None
    """Steps from a tenfold jump of the gradient's scale until the density has settled; None: never."""
    settles_down: int | None
    """The same for a jump to a tenth, as when the learning rate drops and lr·gradient is reduced."""
    drop: int | None
    """The trace's step at which the learning rate dropped by half or more; None: it did not."""
    settles_drop: int | None
    """Steps from there until the density has settled, with the recorded gradients."""
    padding: float
    """Bytes of a gather padded to the longest rank / bytes of the selections."""
    sent: float
    """Payload bytes with the chosen exchange / bytes of the selections."""
    seconds: float
    """Median time of a step's selection on one rank."""
    over_select: float
    """That time / the time of a selection by a given threshold."""
    curve: list[float] = field(repr=False)
    """Achieved density / target, by step."""

    @property
    def label(self) -> str:
        """The trace's name in tables and figures."""
        return f"{self.trace}, W = {self.ranks}" + (f", from step {self.first}" if self.first else "")
