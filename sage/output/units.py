"""Formats numbers for people: bytes, times, rates, percentages and ratios."""

import math
import unicodedata

from sage.output.text import HIDDEN

MISSING = "–"
"""The text for a missing value."""


def printable(text: object) -> str:
    """The text on one line, with every character that a terminal obeys or does not show written as an escape.

    Unlike `sage.output.text.clean_text` it leaves nothing out, so that two names stay two.

    >>> printable("a\\tb"), printable("\\x1b[31m"), printable(b"caf\\xe9".decode(errors="surrogateescape"))
    ('a\\\\tb', '\\\\x1b[31m', 'caf\\\\xe9')
    """
    shown = str(text)
    return shown if shown.isprintable() else "".join(map(_escaped, shown))


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in HIDDEN:
        return character
    code = ord(character)
    # Python decodes a byte of a file name that is not UTF-8 to a surrogate in this range.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]


def size(count: float | None, digits: int = 3) -> str:
    """A number of bytes, in decimal units.

    >>> size(44_700_000), size(0), size(None)
    ('44.7 MB', '0 B', '–')
    """
    if count is None:
        return MISSING
    if not math.isfinite(count):
        return "not finite"
    power = min(int(math.log10(count) // 3), 4) if count >= 1 else 0
    return f"{_significant(count / 1000**power, digits)} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float | None, digits: int = 3) -> str:
    """A time, in the unit that fits it.

    >>> duration(0.0123), duration(75), duration(7380)
    ('12.3 ms', '1 min 15 s', '2 h 3 min')
    """
    if seconds is None:
        return MISSING
    if not math.isfinite(seconds):
        return "not finite"
    if seconds < 60:
        return (
            f"{_significant(seconds, digits)} s"
            if seconds >= 1
            else f"{_significant(seconds * 1000, digits)} ms"
        )
    minutes = round(seconds) // 60
    return (
        f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {round(seconds) % 60} s"
    )


def rate(bits_per_second: float | None) -> str:
    """What a link carries.

    >>> rate(96.4e6), rate(2.2e9), rate(None)
    ('96.4 Mbit/s', '2.2 Gbit/s', '–')
    """
    if bits_per_second is None:
        return MISSING
    if not math.isfinite(bits_per_second):
        return "not finite"
    power = min(max(int(math.log10(bits_per_second) // 3), 0), 4) if bits_per_second >= 1 else 0
    unit = ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s")[power]
    return f"{_significant(bits_per_second / 1000**power)} {unit}"


def speed(bytes_per_second: float | None) -> str:
    """A bandwidth in decimal bytes per second.

    >>> speed(1.25e9), speed(None)
    ('1.25 GB/s', '–')
    """
    text = size(bytes_per_second)
    return f"{text}/s" if bytes_per_second is not None and math.isfinite(bytes_per_second) else text


def number(value: float | None, digits: int = 4) -> str:
    """Format a measured value; the text is `not finite` for infinity and NaN."""
    if value is None:
        return MISSING
    return f"{value:.{digits}g}" if math.isfinite(value) else "not finite"


def percent(share: float | None, digits: int = 3) -> str:
    """Format a fraction as a percentage."""
    if share is None:
        return MISSING
    return f"{_significant(100 * share, digits)} %" if math.isfinite(share) else "not finite"


def times(ratio: float | None) -> str:
    """Format a ratio to the exact runs."""
    return MISSING if ratio is None else f"{_significant(ratio)}×"


def spaced(name: str) -> str:
    """Return the name with spaces for underscores."""
    return name.replace("_", " ")


def _significant(value: float, digits: int = 3) -> str:
    """Format with this number of significant digits, without an exponent where it can be avoided.

    >>> _significant(44.719), _significant(999.6), _significant(12000), _significant(0.00123)
    ('44.7', '1000', '12000', '0.00123')
    >>> _significant(101.25, 5)
    '101.25'
    """
    if digits == 3 and abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"
