"""Cleans text of unknown origin for printing: one line of bounded length without control characters."""

import re
import unicodedata

ESCAPES = re.compile(
    # CSI (colours, cursor); OSC, DCS, SOS, PM and APC (titles, clipboard) up to their end; all others.
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
"""Control sequences of ECMA-48, as terminals interpret them."""

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that terminals interpret or hide: controls, direction marks, surrogates."""


def printable(line: str) -> str:
    """A line of another process's output without control characters and escape sequences; tabs are spaces.

    >>> printable("step 1\\t\\x1b[31mloss  2.5\\x1b[0m")
    'step 1  loss  2.5'
    """
    line = ESCAPES.sub("", line.expandtabs(8))
    return "".join(letter for letter in line if letter == " " or unicodedata.category(letter) not in HIDDEN)


def clean_text(text: str, limit: int = 500) -> str:
    """The text in one line of at most `limit` letters, without control characters and escape sequences.

    Each run of white space becomes one space. A text that is cut ends in an ellipsis.

    >>> clean_text("red: \\x1b[31mfire\\x1b[0m\\nnext line")
    'red: fire next line'
    >>> clean_text("abcdef", limit=4)
    'abc…'
    """
    head = text[: 4 * limit + 1000]  # bounds the time for a text of megabytes
    letters = (" " if letter.isspace() else letter for letter in ESCAPES.sub("", head))
    shown = "".join(letter for letter in letters if unicodedata.category(letter) not in HIDDEN)
    line = " ".join(shown.split())
    if len(line) <= limit and len(head) == len(text):
        return line
    return line[: limit - 1] + "…"
