"""Global top-k: the k = max(1, ⌊d·n⌋) largest elements of the whole vector, by magnitude."""

from .topk import TopK


class GTopK(TopK):
    """As `topk`, over all layers together: large layers may take all of the budget.

    Args:
        density: Share of the vector's elements to send, in (0, 1].
    """

    grouping = "model"


REDUCER = GTopK
