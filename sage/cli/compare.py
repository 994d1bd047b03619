"""`sage compare`: compare two result sets, for CI."""

from pathlib import Path
from typing import Annotated

from ..validate import Range
from .command import Argument, Command, Option
from .folders import ReadFolder, fetched

Factor = Annotated[float, Range(1)]


def compare(*, a: Path, b: Path, factor: float, force: bool, json: bool) -> int:
    """Compare the sets."""
    from ..report.compare.command import main

    return main(fetched(a), fetched(b), factor=factor, force=force, as_json=json)


command = Command(
    "compare",
    compare,
    [
        Argument("a", ReadFolder, "The result set to compare with: a folder of runs, or its URL."),
        Argument("b", ReadFolder, "The result set to check: a folder of runs, or its URL."),
        Option(
            "factor",
            Factor,
            1.05,
            "A step time is a regression only if its ratio is above this, and its interval above 1.",
        ),
        Option("force", bool, False, "Compare times even if machines, torch versions or links differ."),
        Option("json", bool, False, "Print one JSON object instead of the table."),
    ],
    help="Compare two result sets. The exit status is 1 if the second is worse, for CI.",
    notes=(
        "Runs are paired by configuration without the seed, then by seed. Bytes must be equal. A metric is "
        "worse if the 95 % interval of the paired differences excludes 0 and their mean exceeds the standard "
        "deviation over A's seeds. A run that is finished in A only is a regression too."
    ),
)
