"""The results of `sage bench density` as Markdown and CSV tables."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from sage import storage
from sage.bench.density_result import DensityResult

MEASURES: dict[str, Callable[[DensityResult], str]] = {
    "Share of the steps within ±20 % of the target": lambda held: f"{held.within:.0%}",
    "Mean density over the target": lambda held: f"{held.mean:.3f}",
    "Steps to settle after the scale jumps tenfold": lambda held: steps(held.settles_up),
    "Steps to settle after the scale falls to a tenth": lambda held: steps(held.settles_down),
    "Steps to settle after the learning rate drops": lambda held: (
        "–" if held.drop is None else steps(held.settles_drop)
    ),
    "Bytes of a padded gather over those of the selections": lambda held: f"{held.padding:.2f}",
    "Bytes handed over, over those of the selections": lambda held: f"{held.sent:.3f}",
    "Milliseconds of a selection": lambda held: f"{1e3 * held.seconds:.2f}",
    "Time of a selection over one by a given threshold": lambda held: f"{held.over_select:.2f}",
}
"""The tables by title, with the text of a table cell."""


def markdown(held: Sequence[DensityResult]) -> str:
    """One table per measure: one line per trace, one column per controller with all densities."""
    rules = list(dict.fromkeys(each.rule for each in held))
    densities = list(dict.fromkeys(each.density for each in held))
    found = {(each.label, each.density, each.rule): each for each in held}
    targets = " / ".join(f"{density:g}" for density in densities)
    lines = []
    for title, cell in MEASURES.items():
        lines += [f"## {title}, at densities of {targets}", ""]
        lines += [f"| trace | {' | '.join(rules)} |", f"|---|{'---:|' * len(rules)}"]
        for label in dict.fromkeys(each.label for each in held):
            cells = [" / ".join(cell(found[label, density, rule]) for density in densities) for rule in rules]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def line(held: DensityResult) -> str:
    """One result."""
    cells = (cell(held) for cell in MEASURES.values())
    return " | ".join([held.label, f"{held.density:g}", held.rule, *cells])


def write_csv(held: Sequence[DensityResult], path: Path) -> None:
    """Write the results as CSV, without the curves."""
    rows = [{name: value for name, value in asdict(each).items() if name != "curve"} for each in held]
    storage.write_csv(path, rows, list(rows[0]))


def steps(count: int | None) -> str:
    """A number of steps; None stands for "never"."""
    return "never" if count is None else str(count)
