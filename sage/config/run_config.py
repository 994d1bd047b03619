"""The configuration of one run: a frozen dataclass, filled from TOML files and the command line.

Add a new field as `name: Annotated[type, LATER] = default`: at its default it is not part of the run's hash.
"""

import hashlib
import json
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from .. import registry
from ..storage.remote.url import RunsFolder
from ..validate import LATER, Range, coerce, known
from .exchange_options import ExchangeOptions
from .field_marks import annotations_of, default_of, marked
from .field_types import NOT_HASHED, OPTIONED, PARTS, Count, Fraction, NotNegative, Options, Positive, Seconds
from .grouping import check_grouping
from .local_presets import Preset
from .local_updates import check_local, outer_defaults
from .memories import Memory, check_memory
from .optimization import check_optimization
from .record_options import RecordOptions
from .shards import ShardGather, ShardReduce, check_node, unused


@dataclass(frozen=True, kw_only=True)
class Config(ExchangeOptions, RecordOptions):
    """All settings that determine the result of a run, and the location of its files.

    >>> from dataclasses import replace
    >>> a = Config(workload="w", task="classify", model="resnet", data="digits")
    >>> a.hash == replace(a, runs=Path("elsewhere")).hash != replace(a, seed=1).hash
    True
    """

    # Parts
    workload: str
    """Name of the workload: the first part of the run folder's name."""
    task: str
    """The task, which defines loss and metrics: one of `sage list`, a module, or a file."""
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
    """The reducer's own options: --NAME on the command line."""

    # Scale
    world_size: Count = 2
    """Number of ranks."""
    workers_in_process: bool = False
    """Simulate the ranks in one process, on threads."""
    threads: Annotated[int, Range(1, 4096)] = 1
    """Number of torch threads per rank."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto: cuda if available, else cpu."""

    # Optimisation
    epochs: Annotated[float, Range(0, 1e9, open="(")] = 1.0
    """Number of passes over the training data; may be fractional."""
    steps: Count | None = None
    """Stop after this number of optimiser steps, even if --epochs is not reached."""
    batch_size: Count = 32
    """Samples (or text streams) per rank and batch."""
    accumulate: Count = 1
    """Number of batches whose gradients are averaged for one optimiser step (gradient accumulation)."""
    optimizer: Literal[
        "sgd", "adam", "adamw", "muon", "signum", "onebit-adam", "zeroone-adam", "onebit-lamb", "demo", "dion"
    ] = "sgd"
    """The optimiser; muon, dion: for matrices, AdamW for the rest; the last five need --reducer exact."""
    lr: Positive = 0.1
    """The learning rate, before --lr-scale and the schedule."""
    lr_scale: NotNegative = 0.0
    """Scale the learning rate to this times the number of ranks times --lr during the warm-up; 0: off."""
    warmup_epochs: NotNegative = 0.0
    """Epochs of linear warm-up, from the learning rate of one rank to that of all ranks."""
    warmup_steps: Annotated[Annotated[int, Range(0)] | None, LATER] = None
    """Optimiser steps of linear warm-up, in place of --warmup-epochs."""
    warmup_from: Annotated[Annotated[float, Range(0, 1)] | None, LATER] = None
    """Factor of --lr at the first step of the warm-up; if omitted, 1 with --lr-scale, else 1/ranks."""
    schedule: Literal["constant", "step", "cosine", "decay", "linear", "warmdown"] = "constant"
    """Learning rate schedule: steps at --milestones, cosine or linear decay to --min-lr, warmdown: linear
    decay at the end of the run, or decay by --lr-decay each epoch."""
    min_lr: Annotated[NotNegative, LATER] = 0.0
    """Schedules cosine, linear and warmdown: the last learning rate, before --lr-scale."""
    warmdown: Annotated[float, Range(0, 1, open="("), LATER] = 0.2
    """Warmdown schedule: fraction of all steps in which the learning rate decays."""
    milestones: tuple[Positive, ...] = ()
    """Step schedule: epochs at which the learning rate is multiplied by --lr-factor."""
    lr_factor: Annotated[float, Range(0, 1, open="(")] = 0.1
    """Step schedule: factor at each milestone."""
    lr_decay: NotNegative = 0.0
    """Decay schedule: lr * (1 / (1 + lr_decay)) ** max(epoch - decay_from, 0)."""
    decay_from: NotNegative = 6.0
    """Decay schedule: epoch until which the learning rate is constant."""
    momentum: Fraction = 0.9
    """Momentum of SGD, Muon, Signum and Dion."""
    momentum_kind: Literal["heavy-ball", "nesterov", "none"] = "heavy-ball"
    """Variant of this momentum."""
    momentum_at: Literal["before", "after"] = "after"
    """Apply momentum to each rank's gradient before the reduction, or to the mean after it."""
    weight_decay: NotNegative = 0.0
    """Weight decay: this factor times the parameters is added to the gradient, with sgd and adam; with the
    other optimisers, it is multiplied by the learning rate, and subtracted from the parameters."""
    weight_decay_at: Literal["before", "after"] = "after"
    """Add weight decay to each rank's gradient before the reduction, or to the mean after it."""
    decay_norms: bool = False
    """Apply weight decay to one-dimensional parameters (normalisation layers, biases) too."""
    decay_embeddings: Annotated[bool, LATER] = True
    """Apply weight decay to embedding layers too."""
    beta1: Fraction = 0.9
    """Decay rate of the first moment of Adam and AdamW."""
    beta2: Fraction = 0.999
    """Decay rate of the second moment of Adam and AdamW."""
    adam_eps: Annotated[Positive, LATER] = 1e-8
    """Added to the denominator of Adam and AdamW (eps in torch)."""
    adamw_lr: Annotated[Positive | None, LATER] = None
    """With --optimizer muon or dion: learning rate of parameters that AdamW updates; if omitted, --lr."""
    adamw_names: Annotated[tuple[str, ...] | None, LATER] = None
    """With muon or dion: parameters besides embeddings and those that are no matrices that AdamW updates,
    as patterns such as head.*; if omitted, the last linear layer."""
    ns_steps: Annotated[int, Range(1, 99), LATER] = 5
    """With --optimizer muon: number of Newton-Schulz iterations."""
    adjust_lr_fn: Annotated[Literal["original", "match_rms_adamw", "spectral_unclamped"], LATER] = "original"
    """With --optimizer muon: how the learning rate depends on a matrix's shape, as in torch.optim.Muon."""
    clip_local: Positive | None = None
    """Clip each rank's gradient to this norm before the reduction."""
    clip_local_by_world: bool = False
    """Divide --clip-local by the square root of the number of ranks, as DGC does."""
    clip_global: Positive | None = None
    """Clip the mean gradient to this norm after the reduction."""
    average_from: NotNegative | None = None
    """Epoch from which a running average of the model is kept and evaluated too."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Automatic mixed precision of the forward pass; fp16 scales the loss and skips steps that overflow."""
    non_finite: Literal["fail", "skip"] = "fail"
    """If the gradient of any rank is not finite: end the run, or skip the step on all ranks."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Seed of all random numbers."""
    target: float | None = None
    """Stop early when the headline metric reaches this value."""

    # Local updates
    local: Annotated[Preset | None, LATER] = None
    """Preset of local updates: it fills in --local-steps and the options below, which override it."""
    local_steps: Annotated[Count | None, LATER] = None
    """Local updates: optimiser steps that each rank takes alone between two reductions; if omitted, none."""
    local_from: Annotated[int, Range(0), LATER] = 0
    """Local updates: the first step of this kind; before it, the mean of all gradients is taken densely."""
    outer_optimizer: Annotated[Literal["sgd", "nesterov"] | None, LATER] = None
    """Local updates: optimiser that applies the mean pseudo-gradient; none: subtract it."""
    outer_lr: Annotated[Positive | None, LATER] = None
    """Local updates: learning rate of the outer optimiser; if omitted, 1."""
    outer_momentum: Annotated[Fraction | None, LATER] = None
    """Local updates: momentum of the outer optimiser; if omitted, 0."""
    outer_by_lr: Annotated[bool, LATER] = False
    """Local updates: divide pseudo-gradients by the learning rate, and multiply --outer-lr by it (SlowMo)."""
    first_moment_steps: Annotated[Count | None, LATER] = None
    """Local updates: steps between averages of Adam's first moment over ranks; if omitted, there are none."""
    second_moment_steps: Annotated[Count | None, LATER] = None
    """Local updates: the same of the second moment (DES-LOC)."""
    fragments: Annotated[Count, LATER] = 1
    """Local updates: number of parts of the model that are exchanged at different steps."""
    fragment_order: Annotated[Literal["strided", "sequential"], LATER] = "strided"
    """Local updates: assignment of the model's blocks to fragments: in turn, or adjacent ones to one."""
    fragment_sync_delay: Annotated[int, Range(0), LATER] = 0
    """Local updates: steps from the exchange of a fragment until a rank takes over its result."""
    fragment_update_alpha: Annotated[Fraction, LATER] = 0.0
    """Local updates: weight of the rank's own parameters when it takes over the result of an exchange."""
    quorum: Annotated[Count | None, LATER] = None
    """Local updates: ranks that suffice to go on from a checkpoint if others are lost; if omitted, all."""

    # Reduction
    memory: Memory | None = None
    """Error feedback: how unsent gradient elements are kept; if omitted, the reducer's default."""
    memory_beta: Annotated[float, Range(0, 1)] = 1.0
    """Factor of the residual before the gradient is added to it."""
    memory_gamma: Positive = 1.0
    """Factor of the gradient that is added to the residual."""
    memory_lr_ratio: bool = False
    """Scale the residual by the previous learning rate divided by the current one."""
    memory_momentum: Fraction = 0.9
    """With --memory momentum: the momentum."""
    memory_masking: bool = True
    """With --memory momentum: reset the momentum of sent elements to zero."""
    memory_nesterov: Annotated[bool, LATER] = False
    """With --memory momentum: keep g + m·u instead of the momentum u, as for Nesterov momentum."""
    memory_a: Annotated[float, Range(0, 1, open="("), LATER] = 0.1
    """With --memory ef21-sgdm: weight of the newest gradient; with diana: part by which estimates follow."""
    memory_eta: Annotated[float, Range(0, 1, open="("), LATER] = 0.01
    """With --memory econtrol: strength of the error; about the share of elements that the reducer sends."""
    memory_loco_beta: Annotated[Fraction, LATER] = 0.8
    """With --memory loco: weight of the average of unsent elements before a step."""
    memory_reset_every: Annotated[Count, LATER] = 1024
    """With --memory loco: steps after which the average is reset to zero."""
    grouping: str | None = None
    """Unit of reduction: model, layer, or bucket:<MB>; if omitted, the reducer's default."""
    min_compress: Annotated[int, Range(0)] = 1024
    """Tensors with fewer elements are sent dense."""
    mount: Annotated[Literal["whole", "ddp", "fsdp"], LATER] = "whole"
    """What reduces gradients: whole: after backward; ddp: in DistributedDataParallel; fsdp: in FSDP2."""
    bucket_mb: Annotated[float, Range(1e-6, 1e6), LATER] = 25.0
    """With --mount ddp: bucket size in MiB; at DDP's default of 25, the first bucket has 1 MiB. With --mount
    fsdp: parameters, in MiB, from which a module is sharded and reduced by itself."""
    shards: Annotated[int, Range(1), LATER] = 1
    """With --mount fsdp: neighbouring ranks that shard one replica, such as the ranks of a node."""
    shard_reduce: Annotated[ShardReduce, LATER] = "exact"
    """With --shards: the format in which gradients are reduced between the shards of a replica."""
    shard_gather: Annotated[ShardGather, LATER] = "exact"
    """With --shards: the format in which parameters are gathered from them."""
    shard_block: Annotated[Count | None, LATER] = None
    """With these formats: elements that share a scale; if omitted, 256, in sdp4bit 128."""
    shard_node: Annotated[Count | None, LATER] = None
    """With --shard-reduce: neighbouring shards of a node, within which gradients are reduced first."""
    hierarchy: Annotated[Literal["flat", "node"], LATER] = "flat"
    """flat: reduce between all ranks; node: average within each node, then reduce between nodes."""
    ranks_per_node: Annotated[Annotated[int, Range(1)] | None, LATER] = None
    """With --hierarchy node: neighbouring ranks that count as a node; if omitted, those of one host."""
    continue_from: Path | None = None
    """Start from the newest checkpoint of this other run's folder; its number of ranks may differ."""

    # Record
    log_every: Count = 1
    """Steps between two records."""
    histogram_every: Count = 100
    """Steps between two gradient histograms."""
    trace: Annotated[Count | None, LATER, NOT_HASHED] = None
    """Write a Chrome trace of this number of steps for each rank, from the second step of the process on."""
    profile: bool = False
    """Time the phases of each step separately; this synchronises the device between phases."""
    eval_every: Positive = 1.0
    """Epochs between two evaluations; may be fractional."""

    # Files and limits: these cannot change the result
    runs: Annotated[RunsFolder, NOT_HASHED] = Path("runs")
    """Folder of the run folders, or a URL such as s3://bucket/runs, to which they are uploaded."""
    data_root: Annotated[Path | None, NOT_HASHED] = None
    """Folder of the data sets; if omitted, $SAGE_DATA_DIR, else ./data."""
    checkpoint_every: Annotated[Count | None, NOT_HASHED] = None
    """Optimiser steps between two checkpoints; if omitted, at the end of each epoch."""
    timeout: Annotated[Seconds, NOT_HASHED] = 300.0
    """Timeout of the rendezvous and of each collective, in seconds; the run then ends with an error."""
    check_replicas: Annotated[int | None, Range(0), NOT_HASHED] = None
    """Steps between comparisons of the ranks' models; if omitted, at evaluations and checkpoints; 0: off."""
    oversubscribe: Annotated[bool, NOT_HASHED] = False
    """Allow more ranks than the memory and cores of this machine support."""
    guard: Annotated[bool, NOT_HASHED] = False
    """Check before each collective that all ranks are about to call the same one."""
    fresh: Annotated[bool, NOT_HASHED] = False
    """Start from scratch, even if this run is finished or interrupted."""
    slurm: Annotated[dict[str, Any], NOT_HASHED] = field(default_factory=dict)
    """The TOML table [slurm]: sbatch options by their sbatch names."""

    def __post_init__(self) -> None:
        for name, annotation in annotations(type(self)).items():
            object.__setattr__(self, name, coerce(name, getattr(self, name), annotation))
        check_optimization(vars(self))
        check_memory(vars(self))
        check_node(vars(self))
        for name, value in outer_defaults(vars(self)).items():
            object.__setattr__(self, name, value)
        check_local(vars(self))
        check_grouping(self.grouping)

    @cached_property
    def hash(self) -> str:
        """First eight hexadecimal digits of the SHA-256 of all settings that determine the result."""
        aside = marked(type(self), NOT_HASHED) | unused(vars(self))
        kept = {name: value for name, value in self.to_dict().items() if name not in aside}
        # The content of a file is hashed, not its path: an edited file is another run, a moved one is not.
        kept |= {name: registry.identity(kept[name]) for name in PARTS}
        for part in OPTIONED:
            of_part = f"{part}_options"
            kept[of_part] = registry.hashed_options(PARTS[part], getattr(self, part), kept[of_part])
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def folder(self) -> Path:
        """The run's folder: runs/<workload>-<reducer>-<hash>."""
        return self.runs / f"{self.workload}-{registry.short(self.reducer)}-{self.hash}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in their JSON form: a path is a string, a tuple is a list.

        Fields that are marked `LATER` and have their default value are omitted.
        """
        later = marked(type(self), LATER)
        defaults = {field.name: default_of(field) for field in fields(self) if field.name in later}
        values = {name: getattr(self, name) for name in annotations(type(self))}
        values = {name: value for name, value in values.items() if defaults.get(name, MISSING) != value}
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make a configuration from the result of `to_dict`.

        Raises:
            ValueError: if a field is unknown, has an invalid value, or is missing and has no default.
        """
        required = [field.name for field in fields(cls) if default_of(field) is MISSING]
        for name in values:
            known("field of a run", name, annotations(cls))
        if missing := [name for name in required if name not in values]:
            raise ValueError(f"a run needs {', '.join(required)}; not given: {', '.join(missing)}")
        return cls(**values)


def annotations(kind: type[Config] = Config) -> dict[str, Any]:
    """Return the fields of a Config with their annotations, in the order of the class."""
    return annotations_of(kind)
