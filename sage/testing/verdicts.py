"""Verdicts of `sage conform`: kept, broken, and what was not checked, and why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from sage.testing.harness import Case

Word = Literal["broken", "in part", "kept", "not stated", "n/a"]
WORDS: tuple[Word, ...] = ("broken", "in part", "kept", "not stated", "n/a")
"""From the one that matters most: an invariant counts as the first of these that any number of ranks has."""
COLOURS = {"kept": "green", "broken": "red"}
MEMORIES: tuple[Literal["none", "residual"], ...] = ("none", "residual")


@dataclass(frozen=True)
class Verdict:
    """What came of checking one invariant with one number of ranks, without and with a residual."""

    invariant: str
    world_size: int
    word: Word
    """`n/a`: not checked; `in part`: some of it was not; `not stated`: `payload` states no bytes."""
    broken: tuple[str, ...]
    """What was seen where it does not hold."""
    unchecked: tuple[str, ...]
    """Why it, or a part of it, was not checked."""


def verdict(
    law: Callable[[Case], None],
    make: Callable[..., Any],
    options: Mapping[str, Any],
    world_size: int,
    *,
    in_part: bool,
) -> Verdict:
    """Check one invariant.

    Args:
        law: Raises where it does not hold; notes in `Case.unchecked` what it could not check.
        make: The reducer.
        options: Its options.
        world_size: Ranks to check it with.
        in_part: Whether something is checked also where the invariant notes a reason not to.
    """
    broken, unchecked, num_skipped = [], [], 0
    for memory in MEMORIES:
        case = Case(make, options, world_size, memory=memory)
        try:
            law(case)
        except Exception as error:  # an invariant may be broken in any way at all
            complaint = f"{type(error).__name__}: {error}"
            broken.append(f"{law.__name__}, W = {world_size}, memory {memory}: {complaint}")
        num_skipped += bool(case.unchecked)
        unchecked += case.unchecked
    word: Word = "kept"
    if broken:
        word = "broken"
    elif unchecked and (in_part or num_skipped < len(MEMORIES)):
        word = "in part"
    elif unchecked:
        word = "not stated" if any("payload()" in reason for reason in unchecked) else "n/a"
    return Verdict(law.__name__.replace("_", " "), world_size, word, tuple(broken), tuple(unchecked))


def show(name: str, found: Sequence[Verdict]) -> None:
    """Print how many invariants came to each verdict, the table, what broke, and what was not checked."""
    by_name: dict[str, list[Verdict]] = {}
    for each in found:
        by_name.setdefault(each.invariant, []).append(each)
    table = Table("invariant", *(f"W = {w}" for w in dict.fromkeys(each.world_size for each in found)))
    for invariant, row in by_name.items():
        table.add_row(invariant, *(_coloured(each.word) for each in row))
    console = Console(highlight=False)
    console.print(f"{name}: {summary(by_name)}", markup=False, soft_wrap=True)
    console.print(table)
    for each in found:
        for complaint in each.broken:
            console.print(f"broken: {complaint}", markup=False, soft_wrap=True)
    reasons: dict[str, dict[str, None]] = {}
    for each in found:
        for reason in each.unchecked:
            reasons.setdefault(reason, {})[each.invariant] = None
    for reason, invariants in reasons.items():
        console.print(f"not checked: {reason} ({', '.join(invariants)})", markup=False, soft_wrap=True)


def summary(by_name: Mapping[str, Sequence[Verdict]]) -> str:
    """How many invariants came to each verdict."""
    words = [next(word for word in WORDS if any(v.word == word for v in row)) for row in by_name.values()]
    counts = [f"{words.count(word)} {word}" for word in WORDS if word in words]
    return f"{len(words)} invariants: {', '.join(counts)}"


def _coloured(word: Word) -> str:
    return f"[{COLOURS[word]}]{word}[/]" if word in COLOURS else word
