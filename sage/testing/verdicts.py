"""Verdicts of `sage conform`: kept, broken, and what was not checked and why."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sage.testing.harness import Case

Word = Literal["broken", "in part", "kept", "not stated", "n/a"]
WORDS: tuple[Word, ...] = ("broken", "in part", "kept", "not stated", "n/a")
"""By severity: an invariant gets the first of these that it has at any world size."""
COLOURS = {"kept": "green", "broken": "red"}
MEMORIES: tuple[Literal["none", "residual"], ...] = ("none", "residual")


@dataclass(frozen=True)
class Verdict:
    """Result of checking one invariant at one world size, without and with a residual."""

    invariant: str
    world_size: int
    word: Word
    """`n/a`: not checked; `in part`: partly checked; `not stated`: `payload` states no bytes."""
    broken: tuple[str, ...]
    """What was observed where the invariant does not hold."""
    unchecked: tuple[str, ...]
    """Reasons why the invariant, or a part of it, was not checked."""


def verdict(
    invariant: Callable[[Case], None],
    make: Callable[..., Any],
    options: Mapping[str, Any],
    world_size: int,
    *,
    in_part: bool,
) -> Verdict:
    """Check one invariant at one world size.

    Args:
        invariant: Raises if the invariant does not hold; records in `Case.unchecked` what it could not check.
        make: Creates the reducer.
        options: Options of the reducer.
        world_size: Number of ranks.
        in_part: Whether something is checked even if the invariant records a reason not to.
    """
    broken, unchecked, num_skipped = [], [], 0
    for memory in MEMORIES:
        case = Case(make, options, world_size, memory=memory)
        try:
            invariant(case)
        except Exception as error:  # a broken reducer may raise anything
            complaint = f"{type(error).__name__}: {error}"
            broken.append(f"{invariant.__name__}, W = {world_size}, memory {memory}: {complaint}")
        num_skipped += bool(case.unchecked)
        unchecked += case.unchecked
    word: Word = "kept"
    if broken:
        word = "broken"
    elif unchecked and (in_part or num_skipped < len(MEMORIES)):
        word = "in part"
    elif unchecked:
        word = "not stated" if any("payload()" in reason for reason in unchecked) else "n/a"
    return Verdict(invariant.__name__.replace("_", " "), world_size, word, tuple(broken), tuple(unchecked))


def show(name: str, found: Sequence[Verdict]) -> None:
    """Print the number of invariants per verdict, the table, what broke, and what was not checked."""
    # Here, as reducers are also checked on machines that have torch and little else (benchmarks/gpu).
    from rich.console import Console
    from rich.table import Table

    by_name: dict[str, list[Verdict]] = {}
    for verdict in found:
        by_name.setdefault(verdict.invariant, []).append(verdict)
    table = Table("invariant", *(f"W = {w}" for w in dict.fromkeys(verdict.world_size for verdict in found)))
    for invariant, row in by_name.items():
        table.add_row(invariant, *(_coloured(verdict.word) for verdict in row))
    console = Console(highlight=False)
    console.print(f"{name}: {summary(by_name)}", markup=False, soft_wrap=True)
    console.print(table)
    for verdict in found:
        for complaint in verdict.broken:
            console.print(f"broken: {complaint}", markup=False, soft_wrap=True)
    reasons: dict[str, dict[str, None]] = {}
    for verdict in found:
        for reason in verdict.unchecked:
            reasons.setdefault(reason, {})[verdict.invariant] = None
    for reason, invariants in reasons.items():
        console.print(f"not checked: {reason} ({', '.join(invariants)})", markup=False, soft_wrap=True)


def summary(by_name: Mapping[str, Sequence[Verdict]]) -> str:
    """Number of invariants per verdict."""
    words = [next(word for word in WORDS if any(v.word == word for v in row)) for row in by_name.values()]
    counts = [f"{words.count(word)} {word}" for word in WORDS if word in words]
    return f"{len(words)} invariants: {', '.join(counts)}"


def _coloured(word: Word) -> str:
    return f"[{COLOURS[word]}]{word}[/]" if word in COLOURS else word
