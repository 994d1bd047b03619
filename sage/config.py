"""What one run is: a frozen dataclass, filled from a workload's TOML, a TOML file, the command line."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

from . import registry, validate
from .output.text import clean_text
from .storage import read_toml
from .validate import Range, coerce, known

ASIDE = "aside"
"""Marks a field that cannot change a run's result, and so is left out of its hash."""

Option = bool | int | float | str | None | tuple[bool | int | float | str, ...]
Options = dict[str, Option]
Fraction = Annotated[float, Range(0, 1, open=")")]
Positive = Annotated[float, Range(0, open="(")]
NotNegative = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]
Seconds = Annotated[float, Range(0.01, 1e6)]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run's result depends on, and aside from it where the run's files are.

    >>> a = Config(workload="w", task="classify", model="resnet", data="digits")
    >>> a.hash == replace(a, runs=Path("elsewhere")).hash != replace(a, seed=1).hash
    True
    """

    # Parts
    workload: str
    """The workload's name: the first part of the run folder's name."""
    task: str
    """What is learned: gives the loss and the metrics. One of `sage list`, a module, or a file."""
    model: str
    """The network: one of `sage list`, a module as package.module, or a file as ./mine.py."""
    data: str
    """The data set: one of `sage list`, a module, or a file."""
    reducer: str = "sage"
    """The method that reduces gradients: one of `sage list`, a module, or a file."""
    model_options: Options = field(default_factory=dict)
    """The model's own options: --model.NAME on the command line."""
    data_options: Options = field(default_factory=dict)
    """The data set's own options: --data.NAME on the command line."""
    reducer_options: Options = field(default_factory=dict)
    """The reducer's own options: flags of their own on the command line."""

    # Scale
    world_size: Count = 2
    """Number of ranks."""
    workers_in_process: bool = False
    """Simulate the ranks in one process, on threads."""
    threads: Annotated[int, Range(1, 4096)] = 1
    """Torch's threads for each rank."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: cuda where there is one, else cpu."""

    # Optimisation
    epochs: Annotated[float, Range(0, 1e9, open="(")] = 1.0
    """Passes over the training data; may be a fraction."""
    steps: Count | None = None
    """Stop after so many optimiser steps, even within the epochs."""
    batch_size: Count = 32
    """Samples (or text streams) a rank takes at once."""
    accumulate: Count = 1
    """Batches whose gradients are averaged into one optimiser step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """The update rule."""
    lr: Positive = 0.1
    """The learning rate, before --lr-scale and the schedule."""
    lr_scale: NotNegative = 0.0
    """Raise the learning rate, over the warm-up, to this times the number of ranks times --lr; 0: do not."""
    warmup_epochs: NotNegative = 0.0
    """Epochs over which the learning rate rises linearly, from one worker's to all workers'."""
    schedule: Literal["constant", "step", "cosine", "decay"] = "constant"
    """How the learning rate falls: at --milestones, along a cosine to 0, or by --lr-decay each epoch."""
    milestones: tuple[Positive, ...] = ()
    """With the step schedule: the epochs at which the learning rate is multiplied by --lr-factor."""
    lr_factor: Annotated[float, Range(0, 1, open="(")] = 0.1
    """With the step schedule: the factor at each milestone."""
    lr_decay: NotNegative = 0.0
    """With the decay schedule: lr * (1 / (1 + lr_decay)) ** max(epoch - decay_from, 0)."""
    decay_from: NotNegative = 6.0
    """With the decay schedule: the epoch up to which the learning rate stays."""
    momentum: Fraction = 0.9
    """SGD's momentum."""
    momentum_kind: Literal["heavy-ball", "nesterov", "none"] = "heavy-ball"
    """SGD's form of momentum."""
    momentum_at: Literal["before", "after"] = "after"
    """Apply momentum to each rank's gradient before the reduction, or to the mean after it."""
    weight_decay: NotNegative = 0.0
    """The factor of the parameters that is added to the gradient."""
    weight_decay_at: Literal["before", "after"] = "after"
    """Add weight decay to each rank's gradient before the reduction, or to the mean after it."""
    decay_norms: bool = False
    """Decay the parameters of normalisation layers too."""
    beta1: Fraction = 0.9
    """Adam's decay of the first moment."""
    beta2: Fraction = 0.999
    """Adam's decay of the second moment."""
    clip_local: Positive | None = None
    """Clip each rank's gradient to this norm before the reduction."""
    clip_local_by_world: bool = False
    """Clip it to --clip-local over the square root of the number of ranks, as DGC does."""
    clip_global: Positive | None = None
    """Clip the mean gradient to this norm after the reduction."""
    average_from: NotNegative | None = None
    """The epoch from which a running average of the model is kept and evaluated too."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Automatic mixed precision of the forward pass; fp16 scales the loss, and skips steps that overflow."""
    non_finite: Literal["fail", "skip"] = "fail"
    """What to do where a rank's gradient is not finite: end the run, or skip the step, on all ranks."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """What all randomness is drawn from."""
    target: float | None = None
    """Stop early when the headline metric reaches this."""

    # Reduction
    memory: Literal["none", "residual", "momentum", "union"] | None = None
    """Error feedback: what becomes of what was not sent; none given: the reducer's own default."""
    memory_beta: Annotated[float, Range(0, 1)] = 1.0
    """Factor of what was not sent, before the gradient is added to it."""
    memory_gamma: Positive = 1.0
    """Factor of the gradient that is added to what was not sent."""
    memory_lr_ratio: bool = False
    """Scale what was not sent by the learning rate of then over that of now."""
    memory_momentum: Fraction = 0.9
    """With --memory momentum: that momentum."""
    memory_masking: bool = True
    """With --memory momentum: forget the momentum of what was sent."""
    grouping: str | None = None
    """What is reduced at once: model, layer, or bucket:<MB>; none given: the reducer's own default."""
    min_compress: Annotated[int, Range(0)] = 1024
    """Tensors of fewer elements go dense."""

    continue_from: Path | None = None
    """Begin where the newest checkpoint of this other run's folder ends; its number of ranks may differ."""

    # Record
    log_every: Count = 1
    """Steps between two lines of the record."""
    histogram_every: Count = 100
    """Steps between two histograms of the gradient."""
    profile: bool = False
    """Split the step's time into its phases, at the price of synchronising between them."""
    eval_every: Positive = 1.0
    """Epochs between two evaluations; may be a fraction."""

    # Files and limits: these cannot change the result
    runs: Annotated[Path, ASIDE] = Path("runs")
    """Where the run folders are."""
    data_root: Annotated[Path | None, ASIDE] = None
    """Where the data sets are; none given: $SAGE_DATA_DIR, else ./data."""
    checkpoint_every: Annotated[Count | None, ASIDE] = None
    """Optimiser steps between two checkpoints; none given: at each epoch's end."""
    timeout: Annotated[Seconds, ASIDE] = 300.0
    """Seconds that a collective, or the ranks' meeting, may take before the run ends with an error."""
    check_replicas: Annotated[int | None, Range(0), ASIDE] = None
    """Steps between comparisons of the ranks' models; none given: at evaluations and checkpoints; 0: no."""
    oversubscribe: Annotated[bool, ASIDE] = False
    """Allow more ranks than this machine's memory and cores are good for."""
    guard: Annotated[bool, ASIDE] = False
    """Check before each collective that all ranks are about to do the same."""
    fresh: Annotated[bool, ASIDE] = False
    """Begin anew, even where this run is finished or interrupted."""
    slurm: Annotated[dict[str, Any], ASIDE] = field(default_factory=dict)
    """The TOML table [slurm]: sbatch's own names, for the jobs."""

    def __post_init__(self) -> None:
        for name, annotation in annotations().items():
            object.__setattr__(self, name, coerce(name, getattr(self, name), annotation))
        if self.schedule == "step" and not self.milestones:
            raise ValueError(
                "schedule is 'step' without milestones; give the epochs, as in --milestones 80 120"
            )
        if self.schedule == "decay" and not self.lr_decay:
            raise ValueError("schedule is 'decay' with lr_decay 0; give --lr-decay above 0, as in 0.2")
        if self.memory == "momentum" and self.momentum > 0 and self.momentum_kind != "none":
            raise ValueError(
                f"memory is 'momentum', and there is a momentum of {self.momentum:g} {self.momentum_at} the "
                "reduction too, so that it would count twice: give --momentum 0, or another memory"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones are {self.milestones}; allowed are epochs in rising order")
        if self.grouping is not None and not _GROUPING.fullmatch(self.grouping):
            allowed = "model, layer, or bucket:<MB> with MB above 0, as bucket:25"
            raise ValueError(f"grouping is {self.grouping!r}; allowed is {allowed}")

    @cached_property
    def hash(self) -> str:
        """Eight hexadecimal digits that name what the result depends on."""
        kept = {name: value for name, value in self.to_dict().items() if name not in _aside()}
        # A file counts by its content: to edit it makes another run, to move it does not.
        kept |= {name: registry.identity(kept[name]) for name in _PARTS}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def folder(self) -> Path:
        """Where this run is kept: runs/<workload>-<reducer>-<hash>."""
        return self.runs / f"{self.workload}-{registry.short(self.reducer)}-{self.hash}"

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON knows them: paths become texts, tuples lists."""
        values = {name: getattr(self, name) for name in annotations()}
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The run that `to_dict` told of."""
        for name in values:
            known("field of a run", name, annotations())
        if missing := [name for name in _required() if name not in values]:
            raise ValueError(f"a run needs {', '.join(_required())}; not given: {', '.join(missing)}")
        return cls(**values)


_GROUPING = re.compile(r"model|layer|bucket:(?=[\d.]*[1-9])(\d+(\.\d+)?|\.\d+)")
_PARTS: dict[str, registry.Room] = {
    "reducer": "reducers",
    "model": "models",
    "data": "datasets",
    "task": "tasks",
}
_OPTIONED = ("reducer", "model", "data")
"""The parts that take options."""


def workloads() -> dict[str, Path]:
    """The workloads that come with the suite, by name."""
    folder = Path(__file__).parent / "jobs" / "workloads"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(workload: str, *, file: Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """The run of a workload (a name, or a TOML file), as a second file and then the overrides change it.

    A part's options go with it: where a later layer names another part, they are dropped. A table
    `[reducers.NAME]` counts only when NAME is the reducer.
    """
    named = not workload.endswith(".toml")
    path = workloads()[known("workload", workload, workloads())] if named else validate.path(workload)
    layers = [_read(path), *([_read(file)] if file else []), _checked(dict(overrides or {}), "the overrides")]
    merged: dict[str, Any] = {"reducer": Config.reducer}
    for layer in layers:
        merged |= layer
    current: dict[str, Any] = {"reducer": Config.reducer}
    options: dict[str, dict[str, Any]] = {part: {} for part in _OPTIONED}
    for layer in layers:
        options["reducer"] |= layer.get("reducers", {}).get(merged["reducer"], {})
        for part in _OPTIONED:
            current[part] = layer.get(part, current.get(part))
            if current[part] == merged.get(part):
                options[part] |= layer.get(f"{part}_options", {})
    merged |= {f"{part}_options": given for part, given in options.items()}
    merged["slurm"] = {name: value for layer in layers for name, value in layer.get("slurm", {}).items()}
    merged.pop("reducers", None)
    config = Config.from_dict({**merged, "workload": path.stem})
    for part, room in _PARTS.items():
        registry.check_name(room, getattr(config, part))
    return config


def part_options(config: Config) -> dict[str, Mapping[str, registry.Option]]:
    """The options that the run's reducer, model and data set take; this imports all three."""
    found = {part: registry.options_of(_PARTS[part], getattr(config, part)) for part in _OPTIONED}
    if clash := sorted(set(found["reducer"]) & set(annotations())):
        raise ValueError(
            f"the reducer {config.reducer!r} has options with a run's own names: {', '.join(clash)}"
        )
    return found


def resolve(config: Config, **changes: Any) -> Config:
    """The same run with its parts' options checked and their defaults written in, which its hash takes in.

    Changes, but not of the parts themselves, can be made in the same go: a sweep has thousands of them.
    """
    part_options(config)
    checked: dict[str, Any] = {}
    for part in _OPTIONED:
        room = _PARTS[part]
        given = changes.get(f"{part}_options", getattr(config, f"{part}_options"))
        checked[f"{part}_options"] = registry.check_options(room, getattr(config, part), given)
    registry.load("tasks", config.task)
    # Built only so that it checks its options' ranges here, and not when the ranks have started.
    make = registry.load("reducers", config.reducer)
    try:
        make(**checked["reducer_options"])
    except ValueError:
        raise
    except Exception as error:  # a reducer may be anybody's
        said = f"{type(error).__name__}: {clean_text(str(error))}"
        name, options = registry.short(config.reducer), validate.shown(checked["reducer_options"])
        raise ValueError(f"the reducer {name} does not take the options {options}: {said}") from error
    return replace(config, **{**changes, **checked})


@cache
def annotations() -> dict[str, Any]:
    """The fields of a Config with their annotations, in the order of the class."""
    return get_type_hints(Config, include_extras=True)


@cache
def _aside() -> set[str]:
    return {name for name, annotation in annotations().items() if ASIDE in get_args(annotation)}


def _required() -> list[str]:
    return [
        each.name for each in fields(Config) if each.default is MISSING and each.default_factory is MISSING
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        table = read_toml(path, "a TOML file of a run's settings")
    except FileNotFoundError as cause:
        raise ValueError(
            f"there is no file {path}; the workloads that come by name: {', '.join(workloads())}"
        ) from cause
    return _checked(table, path.name)


def _checked(layer: dict[str, Any], source: str) -> dict[str, Any]:
    """A layer whose names and tables can be merged with others; paths of parts are made absolute."""
    for name in layer:
        known(f"setting (in {source})", name, (set(annotations()) | {"reducers"}) - {"workload"})
    for name in ("reducers", "slurm", *(f"{part}_options" for part in _OPTIONED)):
        coerce(f"{name} (in {source})", layer.get(name, {}), dict[str, Any])
    for reducer, table in layer.get("reducers", {}).items():
        registry.check_name("reducers", reducer)
        coerce(f"reducers.{reducer} (in {source})", table, dict[str, Any])
    for part in _PARTS:
        if part in layer:
            layer |= {part: registry.located(coerce(f"{part} (in {source})", layer[part], str))}
    if "reducers" in layer:
        layer |= {"reducers": {registry.located(name): table for name, table in layer["reducers"].items()}}
    return layer
