"""`sage calibrate`: measure what `sage predict` needs of a cluster, a model and reducers."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from .. import registry
from ..config import Config, resolve
from ..config.local_presets import KEYS as LOCAL
from ..config.shards import FORMATS
from ..validate import shown
from .command import Command, Option
from .folders import ReadFolder, fetched
from .run_command import RunCommand, chosen

REDUCERS = ("exact", "bf16", "topk", "sage", "randomk", "powersgd", "onebit", "int8", "dgc")

NOTES = """\
    sage calibrate resnet20-cifar10 --world-size 2                        2 ranks on this machine
    srun sage calibrate resnet20-cifar10                                  the tasks of an allocation
    torchrun --nproc-per-node=2 -m sage calibrate resnet20-cifar10        the processes of torchrun

The ranks are found as `sage run` finds them. A reducer has the options that the workload gives it.
"""


def calibrate(
    *,
    config: Config,
    reducers: Sequence[Config],
    seconds: float,
    steps: int,
    output: Path,
    from_runs: Sequence[Path],
    **_: object,
) -> int:
    """Measure, or read finished runs."""
    from ..bench.calibrate import Plan, main, main_from_runs

    if from_runs:
        return main_from_runs([fetched(path) for path in from_runs], output)
    return main(Plan(config=config, reducers=reducers, seconds=seconds, steps=steps), output)


class Calibrate(RunCommand):
    """A command that takes the options of a run, and several reducers in place of one."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters, without those that choose a run's reducer, its options and its mount."""
        base: Config | None = ctx.meta.get("sage.base")
        of_reducer = registry.options_of("reducers", base.reducer, from_source=True) if base else ()
        left_out = (
            *("reducer", "mount", "bucket_mb", "shards", *FORMATS, "hierarchy", "ranks_per_node"),
            *LOCAL,
            *of_reducer,
        )
        return [param for param in super().get_params(ctx) if param.name not in left_out]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options of a run, and then those of each reducer.

        Raises:
            ValueError: if an option, a reducer or one of its options is wrong.
        """
        if not ctx.resilient_parsing and ctx.parent is not None:
            os.environ.setdefault(
                "TORCH_CPP_LOG_LEVEL", "FATAL"
            )  # before torch is imported, as in `sage run`
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing and ctx.params.get("from_runs") and not args[0].startswith("-"):
            raise ValueError(f"--from-runs: the runs have their workload; leave out {shown(args[0])}")
        if not ctx.resilient_parsing:
            config, densities = ctx.params["config"], ctx.params["densities"]
            if config.local_steps is not None:
                raise ValueError(
                    f"the workload has local_steps {config.local_steps}; {self.name} measures and predicts "
                    "runs that reduce the gradient of every step: take local and local_steps out of the file"
                )
            ctx.params["reducers"] = [
                of_reducer
                for spec in ctx.params["reducers"]
                for of_reducer in configs_of(spec, densities, config, args)
            ]
        return rest

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the command does, and for which workload the options are listed."""
        Command.format_help_text(self, ctx, formatter)
        if (base := ctx.meta.get("sage.base")) is not None:
            formatter.write_paragraph()
            formatter.write_text(
                f"The options below are those of the workload {base.workload}, with the model "
                f"{registry.short(base.model)} and the data set {registry.short(base.data)}. Another choice "
                "has other options."
            )


def configs_of(spec: str, densities: Sequence[float], config: Config, args: Sequence[str]) -> list[Config]:
    """Return the configuration with a reducer, once for each density if the reducer has one.

    Args:
        spec: The reducer, with or without options: NAME[:OPTION=VALUE,...].
        densities: Densities; none: that of the reducer's options.
        config: The configuration.
        args: The command line, whose workload may have options for the reducer.

    Raises:
        ValueError: if there is no such reducer, or one of its options is wrong.
    """
    from ..bench.repetitions import parsed

    name, given = parsed(spec)
    registry.check_name("reducers", name)
    base = chosen([*args, "--reducer", name])
    options = {**base.reducer_options, **given}
    has_density = "density" in registry.options_of("reducers", name) and "density" not in given
    all_options = (
        [{**options, "density": density} for density in densities] if densities and has_density else [options]
    )
    return [resolve(replace(config, reducer=base.reducer, reducer_options=one)) for one in all_options]


command = Calibrate(
    "calibrate",
    calibrate,
    [
        Option("reducers", tuple[str, ...], REDUCERS, "The reducers, each NAME[:OPTION=VALUE,...]."),
        Option("densities", tuple[float, ...], (), "Target densities; default: that of each reducer."),
        Option("steps", int, 10, "Least number of timed steps; number of reductions of each reducer."),
        Option(
            "seconds", float, 60.0, "Time for the collectives; the reducers take the same time in addition."
        ),
        Option("output", Path, Path("calibration.json"), "The file to write."),
        Option(
            "from_runs",
            tuple[ReadFolder, ...],
            (),
            "Folders of finished runs, or their URLs: use the times in their records, and measure nothing.",
        ),
    ],
    help="Measure a cluster, a model and reducers for `sage predict`. All ranks take part.",
    notes=NOTES,
)
