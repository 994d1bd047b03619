"""What `sage report SWEEP.toml` shows: the sweep's runs that have begun, and its targets."""

from pathlib import Path

from sage.jobs.pilot import method
from sage.jobs.sweep import read
from sage.report.targets import Target


def runs_and_targets(path: Path) -> tuple[list[Path], Path, dict[tuple[str, int, str], Target]]:
    """Return the run folders, the folder that contains them, and the targets.

    Raises:
        ValueError: the sweep is invalid, none of its runs has begun, or a target is of another sweep.
    """
    sweep = read(path)
    untuned = {method(config) for config in read(path, untuned=True).configs}
    folders = [config.folder for config in sweep.configs if config.folder.is_dir()]
    if not folders:
        raise ValueError(
            f"none of the {len(sweep.configs)} runs of {path} has begun; run `sage submit {path}`"
        )
    targets = {}
    for each in sweep.targets:
        if each.reference not in untuned:
            raise ValueError(
                f"the target for {each.workload} (in {path}) is from {each.reference}, which is no run of "
                "this sweep any more; run `sage target` again"
            )
        late = "" if each.before else "; fixed after runs of the comparison were finished"
        targets[each.workload, each.world_size, each.metric] = Target(each.value, each.origin + late)
    return folders, sweep.runs, targets
