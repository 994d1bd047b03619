"""`sage published`: list the published tables, and compare runs with them."""

import json as json_module
from pathlib import Path

from .command import Argument, Command, Option
from .folders import ReadFolder, fetched
from .values import Suggestions


def published(*, source: str | None, all: bool, runs: Path | None, json: bool) -> int:
    """Print the sources, or the tables of one.

    Raises:
        ValueError: if there is no such source, its file is not valid, or --runs is given without a source.
    """
    from ..report.published import files, text

    if source is None:
        if runs is not None:
            raise ValueError("--runs needs a source to compare with; `sage published` lists the sources")
        sources = [files.read(path) for path in files.sources().values()]
        shown = sources if all else [source.verified() for source in sources]
        if json:
            _print({"sources": [text.as_object(source) for source in shown]})
        else:
            print("\n".join(text.listing(sources)))
        return 0
    whole = files.find(source)
    given = whole if all else whole.verified()
    found, lines = text.as_object(given), text.text(given)
    if runs is not None:
        from ..report.published import own_runs  # needs numpy

        compared = own_runs.compare(given, [fetched(runs)])
        found["beside"] = own_runs.as_object(compared)
        lines += ["", *own_runs.text(compared)]
    if json:
        _print(found)
        return 0
    print("\n".join(lines))
    if left_out := len(whole.rows) - len(given.rows):
        print(f"\n{left_out} figures that are not verified are left out; --all prints them.")
    return 0


def _print(found: object) -> None:
    print(json_module.dumps(found, indent=2, ensure_ascii=False))


command = Command(
    "published",
    published,
    [
        Argument(
            "source",
            str,
            "A published source, or a TOML file of one; default: list them.",
            required=False,
            suggestions=Suggestions("published", or_files=True),
        ),
        Option("all", bool, False, "Print the figures that are not verified too, each with its status."),
        Option(
            "runs",
            ReadFolder | None,
            None,
            "A folder of runs, or its URL: print their ratios next to the published ones.",
        ),
        Option("json", bool, False, "Print one JSON object."),
    ],
    help="List the published tables that SAGE has as data, and compare runs with them. Both are compared by "
    "their ratios to their own baselines, because seconds of different hardware do not compare.",
)
