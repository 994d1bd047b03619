"""`sage data prepare`: download a data set, and check and convert its files."""

from pathlib import Path
from typing import Any

from .. import registry
from .command import Argument, Command, Option
from .part_group import PartGroup


def of(name: str) -> Command:
    """Return the command that prepares one data set, with the options of its `prepare`.

    Raises:
        ValueError: if there is no such data set, or if it has no `prepare`.
    """
    prepare = getattr(registry.load("datasets", name), "prepare", None)
    if not callable(prepare):
        raise ValueError(
            f"the data set {name} has no `prepare`; add a static method prepare(root) to its class"
        )

    def run(*, data_folder: Path | None, root: Path | None, **options: Any) -> int:
        from ..data.dataset import data_root

        prepare(data_root(root or data_folder), **options)
        return 0

    own = [
        Option(key, option.type, option.default, option.help)
        for key, option in registry.options(prepare).items()
    ]
    where = "The folder of the data sets; default: $SAGE_DATA_DIR, else ./data."
    return Command(
        name,
        run,
        [
            Argument("data_folder", Path, "The same as --root.", required=False),
            Option("root", Path | None, None, where),
            *own,
        ],
        help=registry.summary("datasets", name),
    )


command = PartGroup("prepare", "datasets", of, help="Download a data set, and check and convert its files.")
