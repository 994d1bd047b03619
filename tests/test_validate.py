"""Tests of input validation: accepted values of an annotation, the resulting types, and the errors."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from sage.validate import Range, coerce, describe, known


@pytest.mark.parametrize(
    ("value", "annotation", "fitted"),
    [
        (1, float, 1.0),
        (1, int | float, 1),
        (1.0, int | float, 1.0),
        (1, float | None, 1.0),
        (None, float | None, None),
        (True, bool | int, True),
        ([1, 2], tuple[int, ...], (1, 2)),
        ((1, "a"), tuple[float, str], (1.0, "a")),
        ("here", Path, Path("here")),
        ("a", Literal["a", "b"], "a"),
        ({"a": [1]}, dict[str, tuple[int, ...]], {"a": (1,)}),
        (1, Annotated[float, Range(1, 2)], 1.0),
        (None, Annotated[int | None, Range(1)], None),
    ],
)
def test_a_valid_value_is_converted_to_its_type(value: Any, annotation: Any, fitted: Any) -> None:
    got = coerce("x", value, annotation)
    assert got == fitted
    assert type(got) is type(fitted)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (True, int),
        (True, float),
        (1, bool),
        (1.0, int),
        ("1", float),
        (float("nan"), float),
        (float("-inf"), float),
        (1, str),
        (1, Path),
        (True, Literal[1]),
        ("a", tuple[str, ...]),
        ([1], tuple[int, int]),
        ([1, "a"], tuple[int, ...]),
        ({1: 1}, dict[str, int]),
        (None, int),
        (1, Annotated[int, Range(1, open="(")]),
        (2, Annotated[int, Range(1, 2, open=")")]),
        (0, Annotated[int | None, Range(1)]),
    ],
)
def test_an_invalid_value_is_refused(value: Any, annotation: Any) -> None:
    with pytest.raises(ValueError, match=r"^x is .*; allowed is "):
        coerce("x", value, annotation)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[int, Range(1)], "a whole number in [1, inf)"),
        (Annotated[float, Range(0, 1, open="()")], "a number in (0, 1)"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (tuple[int, ...], "a list, each a whole number"),
        (tuple[int, str], "a list of a whole number, a text"),
        (bool | None, "true or false, or none"),
    ],
)
def test_an_annotation_is_described_in_words(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


def test_an_unknown_name_is_refused_with_similar_names_or_else_with_all() -> None:
    assert known("verb", "run", ["run", "list"]) == "run"
    with pytest.raises(ValueError, match=r"^no verb is called 'rnu'; did you mean 'run'\?$"):
        known("verb", "rnu", ["run", "list"])
    with pytest.raises(ValueError, match="'cifar'; did you mean 'resnet20-on-cifar10'"):
        known("workload", "cifar", ["resnet20-on-cifar10", "digits"])
    with pytest.raises(ValueError, match=r"^no verb is called 'x'; allowed are list, run$"):
        known("verb", "x", ["run", "list"])
    with pytest.raises(ValueError, match="there are none"):
        known("verb", "x", [])
