"""The results of `sage bench density` as Markdown and CSV tables."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from sage import storage
from sage.bench.density_result import DensityResult

MEASURES: dict[str, Callable[[DensityResult], str]] = {
    "Share of the steps within ±20 % of the target": lambda result: f"{result.within:.0%}",
    "Mean density over the target": lambda result: f"{result.mean:.3f}",
    "Steps to settle after the scale jumps tenfold": lambda result: steps(result.settles_up),
    "Steps to settle after the scale falls to a tenth": lambda result: steps(result.settles_down),
    "Steps to settle after the learning rate drops": lambda result: (
        "–" if result.drop is None else steps(result.settles_drop)
    ),
    "Bytes of a padded gather over those of the selections": lambda result: f"{result.padding:.2f}",
    "Bytes handed over, over those of the selections": lambda result: f"{result.sent:.3f}",
    "Milliseconds of a selection": lambda result: f"{1e3 * result.seconds:.2f}",
    "Time of a selection over one by a given threshold": lambda result: f"{result.over_select:.2f}",
}
"""The tables by title, with the text of a table cell."""


def markdown(results: Sequence[DensityResult]) -> str:
    """One table per measure: one line per trace, one column per controller with all densities."""
    rules = list(dict.fromkeys(result.rule for result in results))
    densities = list(dict.fromkeys(result.density for result in results))
    found = {(result.label, result.density, result.rule): result for result in results}
    targets = " / ".join(f"{density:g}" for density in densities)
    lines = []
    for title, cell in MEASURES.items():
        lines += [f"## {title}, at densities of {targets}", ""]
        lines += [f"| trace | {' | '.join(rules)} |", f"|---|{'---:|' * len(rules)}"]
        for label in dict.fromkeys(result.label for result in results):
            cells = [" / ".join(cell(found[label, density, rule]) for density in densities) for rule in rules]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def line(result: DensityResult) -> str:
    """One result."""
    cells = (cell(result) for cell in MEASURES.values())
    return " | ".join([result.label, f"{result.density:g}", result.rule, *cells])


def write_csv(results: Sequence[DensityResult], path: Path) -> None:
    """Write the results as CSV, without the curves."""
    rows = [{name: value for name, value in asdict(result).items() if name != "curve"} for result in results]
    storage.write_csv(path, rows, list(rows[0]))


def steps(count: int | None) -> str:
    """A number of steps; None stands for "never"."""
    return "never" if count is None else str(count)
