"""What `sage report SWEEP.toml` shows: the sweep's runs that have begun, and its targets."""

from pathlib import Path

from sage import registry
from sage.jobs.pilot import method
from sage.jobs.sweep import Sweep, labels, read
from sage.report.time_to_target.targets import Target


def runs_and_targets(path: Path) -> tuple[list[Path], Path, dict[tuple[str, int, str], Target]]:
    """Return the run folders, the folder that contains them, and the targets.

    Raises:
        ValueError: the sweep is invalid, none of its runs has begun, or a target is of another sweep.
    """
    sweep, before = read(path), read(path, untuned=True)
    untuned = {method(config) for config in before.configs}
    folders = [config.folder for config in sweep.configs if config.folder.is_dir()]
    if not folders:
        raise ValueError(
            f"none of the {len(sweep.configs)} runs of {path} has begun; run `sage submit {path}`"
        )
    targets = {}
    for target in sweep.targets:
        if target.reference not in untuned:
            raise ValueError(
                f"the target for {target.workload} (in {path}) is from {target.reference}, which is no "
                "longer a run of this sweep; run `sage target` again"
            )
        late = "" if target.before else "; fixed after runs of the comparison were finished"
        targets[target.workload, target.world_size, target.metric] = Target(
            target.value, target.origin + late, _tuning(before, target.workload, target.world_size)
        )
    return folders, sweep.runs, targets


def _tuning(sweep: Sweep, workload: str, world_size: int) -> str:
    """State the chosen tuning point of each method of a workload, from the sweep before tuning."""
    if sweep.pilot is None or not sweep.pilot.is_tuned:
        return ""
    points = {choice.method: choice.point for choice in sweep.chosen}
    settings = labels(sweep)
    chosen = {}
    for config in sweep.configs:
        if (config.workload, config.world_size) == (workload, world_size) and method(config) in points:
            words = [
                word for word in settings[config.folder.name].split(", ") if not word.startswith("seed ")
            ]
            name = registry.short(config.reducer) + (f" ({', '.join(words)})" if any(words) else "")
            values = ", ".join(f"{key} {value}" for key, value in points[method(config)].items())
            chosen[method(config)] = f"{name} {values}"
    num = len(sweep.pilot.points(registry.short(sweep.configs[0].reducer)))
    return f"Tuned on the pilot seeds over {num} points for every method: {'; '.join(chosen.values())}."
