"""How many examples a property test tries: few in CI, more where `SAGE_FUZZ` says so (`make fuzz`)."""

import os


def examples(usual: int) -> int:
    """The number of examples to try: `usual`, or as many as `SAGE_FUZZ` says.

    Raises:
        ValueError: where `SAGE_FUZZ` is no whole number above 0.
    """
    asked = os.environ.get("SAGE_FUZZ", "")
    if asked and not (asked.isascii() and asked.isdecimal() and int(asked) > 0):
        raise ValueError(f"SAGE_FUZZ={asked!r}; allowed is a whole number above 0")
    return int(asked or usual)
