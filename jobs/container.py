"""The container of a run's ranks: options of pyxis, SLURM's plugin for containers, which srun gets.

The batch script runs on the node itself, so requeues and checkpoints are as without a container.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

OPTIONS = ("container-image", "container-mounts")
"""Keys of [slurm] that are options of pyxis."""

PYTHON = "python3"
"""Python inside the image, where SAGE is installed."""


def check_container(given: Mapping[str, object]) -> None:
    """Refuse options that srun would not take.

    Raises:
        ValueError: A value is not a string, or there are mounts without an image.
    """
    for name in OPTIONS:
        if name in given and not isinstance(given[name], str):
            raise ValueError(
                f"[slurm] {name} is {given[name]!r}; allowed is a string, as in pyxis's --{name}"
            )
    if "container-mounts" in given and "container-image" not in given:
        raise ValueError(
            "[slurm] has container-mounts without container-image: set the image, or leave the mounts out"
        )


def srun_options(given: Mapping[str, object], folders: Iterable[Path]) -> list[str]:
    """Return srun's options for ranks in the image, in which these folders have the same paths as outside.

    Args:
        given: The options of [slurm]; without `container-image` the result is empty.
        folders: The working directory, and then the other folders of the run, with absolute paths.

    Raises:
        ValueError: A folder's path contains `,` or `:`, which separate mounts.
    """
    if "container-image" not in given:
        return []
    paths = list(dict.fromkeys(map(str, folders)))
    if wrong := [path for path in paths if "," in path or ":" in path]:
        raise ValueError(
            f"[slurm] has a container-image, where {wrong[0]!r} would be mounted, but mounts are separated "
            "by , and : so no path may contain them: rename the folder"
        )
    mounts = [f"{path}:{path}" for path in paths]
    mounts += [str(given["container-mounts"])] if "container-mounts" in given else []
    return [
        f"--container-image={given['container-image']}",
        f"--container-mounts={','.join(mounts)}",
        f"--container-workdir={paths[0]}",
    ]
