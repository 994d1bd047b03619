"""`sage data list`: list the data sets."""

import json as json_module

from .. import registry
from .command import Command, Option
from .list import table


def data_list(*, json: bool) -> int:
    """Print each data set with its summary."""
    sets = {name: registry.summary("datasets", name) for name in registry.names("datasets")}
    print(json_module.dumps(sets, indent=2, ensure_ascii=False) if json else "\n".join(table(sets)))
    return 0


command = Command(
    "list",
    data_list,
    [Option("json", bool, False, "Print one JSON object.")],
    help="List the data sets.",
)
