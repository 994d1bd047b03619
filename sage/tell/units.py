"""Figures as a person reads them: bytes, times, shares and ratios."""

import math


def size(count: float | None) -> str:
    """A number of bytes, in decimal units.

    >>> size(44_700_000), size(0), size(None)
    ('44.7 MB', '0 B', '—')
    """
    if count is None:
        return "—"
    power = min(int(math.log10(count) // 3), 4) if count >= 1 else 0
    return f"{_significant(count / 1000**power)} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float | None) -> str:
    """A time, in the unit that fits it.

    >>> duration(0.0123), duration(75), duration(7380)
    ('12.3 ms', '1 min 15 s', '2 h 3 min')
    """
    if seconds is None:
        return "—"
    if seconds < 60:
        return f"{_significant(seconds)} s" if seconds >= 1 else f"{_significant(seconds * 1000)} ms"
    minutes = round(seconds) // 60
    return (
        f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {round(seconds) % 60} s"
    )


def number(value: float | None) -> str:
    """A measured figure; one that was not finite says so."""
    if value is None:
        return "—"
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def percent(share: float | None) -> str:
    """A share of one, in per cent."""
    return "—" if share is None else f"{_significant(100 * share)} %"


def times(ratio: float | None) -> str:
    """A ratio to the exact run."""
    return "—" if ratio is None else f"{_significant(ratio)}×"


def spaced(name: str) -> str:
    """A name as prose has it."""
    return name.replace("_", " ")


def _significant(value: float) -> str:
    """Three significant digits, without an exponent where it can be avoided.

    >>> _significant(44.719), _significant(999.6), _significant(12000), _significant(0.00123)
    ('44.7', '1000', '12000', '0.00123')
    """
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
