"""The findings of a trace in sentences: which of SIDCo's assumptions hold for its gradients."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from sage.bench.distribution.families import SIDCO
from sage.bench.distribution.measure import SHARES, WHOLE, WITH, WITHOUT, Row
from sage.output.units import percent

FEEDBACK = {WITHOUT: "without error feedback", WITH: "with error feedback"}
NORMAL, EXPONENTIAL = 0.0845, 0.1621
"""Share of the squared norm in the largest 1 % of a normal and of a double exponential distribution."""


def findings(rows: Sequence[Row]) -> list[str]:
    """Sentences about the whole gradient at all measured steps of one trace, and about its layers."""
    whole = [row for row in rows if row.layer == WHOLE and row.fits]
    if not whole:
        return ["No gradient could be fitted: fewer than two elements are nonzero, or all are equal."]
    lines = [_symmetry(whole), _compressible(whole)]
    for memory, words in FEEDBACK.items():
        lines += _families([row for row in whole if row.memory == memory], words)
    layers = [row for row in rows if row.layer != WHOLE and row.fits]
    if layers:
        lines += [
            _layers([r for r in layers if r.memory == memory], words) for memory, words in FEEDBACK.items()
        ]
    return lines


def _symmetry(rows: Sequence[Row]) -> str:
    return (
        "Symmetry about zero, which the double families assume: "
        f"{_range(rows, lambda row: row.positive, percent)} of the nonzero elements are positive."
    )


def _compressible(rows: Sequence[Row]) -> str:
    at = SHARES.index(0.01)
    return (
        "Compressibility: the largest 1 % of the elements hold "
        f"{_range(rows, lambda row: row.energy[at], percent)} of the squared norm "
        f"(normal: {percent(NORMAL, 2)}, double exponential: {percent(EXPONENTIAL, 2)})."
    )


def _families(rows: Sequence[Row], words: str) -> Iterable[str]:
    best = Counter(row.best or "no single family" for row in rows)
    closest = ", ".join(f"{name} at {count} of {len(rows)} steps" for name, count in best.most_common())
    yield f"Closest {words}: {closest}."

    def sidco(row: Row) -> float:
        return min((row.fits[name].ks for name in SIDCO if name in row.fits), default=1.0)

    def normal(row: Row) -> float:
        return row.fits["normal"].ks if "normal" in row.fits else 1.0

    exact = sum(any(each.ks <= row.error for each in row.fits.values()) for row in rows)
    yield (
        f"SIDCo's assumption {words}: the smallest KS distance of its three families is "
        f"{_range(rows, sidco, _three)}, that of the normal {_range(rows, normal, _three)}; "
        f"the sampling error is {_range(rows, lambda row: row.error, _three)}. "
        f"SIDCo's are closer at {sum(sidco(row) < normal(row) for row in rows)} of {len(rows)} steps; "
        f"a family matches within the sampling error at {exact}."
    )
    at = SHARES.index(0.001)
    ranges = [
        f"{name} {_range(rows, lambda row, name=name: row.fits[name].selected[at], _three)}"  # type: ignore[misc]
        for name in SIDCO
        if all(name in row.fits for row in rows)
    ]
    yield f"Selected over target for a threshold of one fit at 0.1 % {words}: {'; '.join(ranges)}."


def _layers(rows: Sequence[Row], words: str) -> str:
    known = [row for row in rows if row.best]
    best = ", ".join(f"{name} {count}" for name, count in Counter(row.best for row in known).most_common())
    left = len(rows) - len(known)
    return (
        f"Closest {words}, by layer and step ({len(rows)}): {best or 'none'}"
        f"{f'; {left} have too few elements to tell the families apart' if left else ''}."
    )


def _range(rows: Sequence[Row], of: Callable[[Row], float], text: Callable[[float], str]) -> str:
    values = [of(row) for row in rows]
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


def _three(value: float) -> str:
    return f"{value:.3f}"
