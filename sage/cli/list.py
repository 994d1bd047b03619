"""`sage list`: list the reducers, models, data sets, tasks and workloads."""

import json as json_module
from pathlib import Path

from .. import registry
from .command import Command, Option

TITLES: dict[registry.PartKind, str] = {
    "reducers": "reducers",
    "models": "models",
    "datasets": "data sets",
    "tasks": "tasks",
}


def list_parts(*, json: bool) -> int:
    """Print each part and workload with its summary."""
    found = {kind: {name: registry.summary(kind, name) for name in registry.names(kind)} for kind in TITLES}
    own = {name: _first_comment(path) for name, path in registry.workloads().items()}
    if json:
        print(json_module.dumps({**found, "workloads": own}, indent=2, ensure_ascii=False))
        return 0
    titled = {**{title: found[kind] for kind, title in TITLES.items()}, "workloads": own}
    width = max(len(name) for rows in titled.values() for name in rows)
    blocks = ["\n".join([f"{title}:", *table(rows, width)]) for title, rows in titled.items()]
    print("\n\n".join(blocks))
    return 0


def table(rows: dict[str, str], width: int = 0) -> list[str]:
    """Format names and summaries in two columns."""
    width = width or max(map(len, rows))
    return [f"  {name:{width}}  {line}".rstrip() for name, line in rows.items()]


def _first_comment(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").removeprefix("#").strip()


command = Command(
    "list",
    list_parts,
    [Option("json", bool, False, "Print one JSON object.")],
    help="List the reducers, models, data sets, tasks and workloads.",
)
