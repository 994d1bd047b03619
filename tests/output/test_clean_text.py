"""Tests that text of another process is printed as one bounded line without control characters."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.output.text import HIDDEN, clean_text


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain words, ä and 漢字", "plain words, ä and 漢字"),
        ("\x1b[2J\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]52;c;c3RvbGVu\x1b\\after", "after"),
        ("\x1bPq#0;2;0;0;0\x1b\\after", "after"),
        ("\x1bcreset", "reset"),
        ("one\r\ntwo\tthree\x0bfour\x85five\u2028six", "one two three four five six"),
        ("a\x00b\x07c\x7fd\x9fe", "abcd"),
        ("right\u202eleft\u2066\u200bzero", "rightleftzero"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("\x1b[", ""),
    ],
)
def test_a_cleaned_text_has_nothing_that_a_terminal_interprets(text: str, printed: str) -> None:
    assert clean_text(text) == printed


def test_a_long_text_is_truncated_whatever_its_characters() -> None:
    assert clean_text("x" * 10**7, limit=10) == "x" * 9 + "…"
    assert clean_text("\x1b[0m" * 10**6 + "after", limit=10).endswith("…")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters() | st.sampled_from("\x1b[]\x9b;m\x07\n")), st.integers(1, 60))
def test_any_text_becomes_one_clean_bounded_line(text: str, limit: int) -> None:
    cleaned = clean_text(text, limit)
    assert len(cleaned) <= limit
    assert not {unicodedata.category(letter) for letter in cleaned} & HIDDEN
    assert cleaned.isprintable()
    assert clean_text(cleaned, limit) == cleaned
