"""Sets the number of examples of property tests: few in CI, more with `SAGE_FUZZ` (`make fuzz`)."""

import os


def examples(usual: int) -> int:
    """Return the number of examples to try: the value of `SAGE_FUZZ`, or `usual` if it is not set.

    Raises:
        ValueError: if `SAGE_FUZZ` is not a positive integer.
    """
    asked = os.environ.get("SAGE_FUZZ", "")
    if asked and not (asked.isascii() and asked.isdecimal() and int(asked) > 0):
        raise ValueError(f"SAGE_FUZZ={asked!r}; allowed is a whole number above 0")
    return int(asked or usual)
