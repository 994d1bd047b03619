"""The set-ups that are verified: the dense references, and those with the shortest predicted step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sage import registry
from sage.config import Config
from sage.predict.grid import Row
from sage.predict.step_time import DENSE

NUM_CANDIDATES = 3
"""Number of compressing set-ups that are verified."""

REFERENCES = tuple(DENSE)
"""The dense reducers, of which the faster under `--mount ddp` is the reference."""

LEAST_GAIN = 1.02
"""How much shorter a step with another size of buckets has to be, to be preferred: a prediction leaves out
what a bucket costs by itself.
"""


@dataclass(frozen=True)
class Setup:
    """What a run would be started with."""

    config: Config
    is_dense: bool
    predicted_seconds: float
    name: str
    """How a user chooses it."""


def flags(config: Config) -> str:
    """Return the options of `sage run` that choose the reducer and the mount of a configuration.

    Options of the reducer at their default are left out, except the density.
    """
    options = [_flag(name, value) for name, value in _given(config).items()]
    buckets = [f"--bucket-mb {config.bucket_mb:g}"] if _has_other_buckets(config) else []
    return " ".join([f"--reducer {config.reducer}", *options, f"--mount {config.mount}", *buckets])


def script_line(config: Config) -> str:
    """Return the line of a script that mounts the reducer on a model, or on a DDP model for `--mount ddp`."""
    function = "ddp_hook" if config.mount == "ddp" else "reduce_model"
    options = [f", {name}={value!r}" for name, value in _given(config).items()]
    line = f"sage.{function}(model, {config.reducer!r}{''.join(options)})"
    if _has_other_buckets(config):
        line += f", with DistributedDataParallel(..., bucket_cap_mb={config.bucket_mb:g})"
    return line


def _has_other_buckets(config: Config) -> bool:
    return config.mount == "ddp" and config.bucket_mb != Config.bucket_mb


def _given(config: Config) -> dict[str, Any]:
    known = registry.options_of("reducers", config.reducer)
    return {
        name: value
        for name, value in config.reducer_options.items()
        if name == "density" or value != known[name].default
    }


def _flag(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


def candidates(
    rows: Sequence[Row], configs: Sequence[Config], name: Callable[[Config], str] = flags
) -> list[Setup]:
    """Return the references, then the compressing set-ups with the shortest predicted step.

    Each reducer appears once, with the options, the mount and the buckets that are predicted to be the
    fastest: three densities of one reducer would leave no room for another. The references have the size of
    buckets of the configuration; if another size is predicted to be faster for one of them, the fastest of
    these is a reference too.

    Args:
        rows: The predictions at the world size and the links in use, those with the size of buckets of the
            configuration before those with other sizes.
        configs: The configuration of each reducer that was measured.
        name: Names a configuration for the user.
    """
    own = next((row.bucket_mb for row in rows if row.mount == "ddp"), None)

    def seconds(row: Row) -> float:
        return row.seconds if row.mount != "ddp" or row.bucket_mb == own else LEAST_GAIN * row.seconds

    ordered = sorted(rows, key=seconds)
    references = [row for row in ordered if row.reducer in REFERENCES and row.mount == "ddp"]
    dense = [row for row in references if row is references[0] or row.bucket_mb == own]
    chosen: list[Row] = []
    for row in ordered:
        is_new = row.reducer not in {other.reducer for other in chosen}
        if row.verdict != "dense" and is_new and len(chosen) < NUM_CANDIDATES:
            chosen.append(row)
    return [_setup(row, configs, name) for row in [*dense, *chosen]]


def with_half_sums(setups: Sequence[Setup], name: Callable[[Config], str]) -> list[Setup]:
    """Return the set-ups with that of `bf16` a second time, by the all-reduce of PyTorch's bf16 hook.

    On CPUs and between more than two ranks it is another exchange, which is predicted to be as fast.
    """
    more = []
    for setup in setups:
        if setup.config.reducer == "bf16":
            options = {**setup.config.reducer_options, "sums": "half"}
            config = replace(setup.config, reducer_options=options)
            more.append(replace(setup, config=config, name=name(config)))
    return [*(setup for setup in setups if setup.is_dense), *more, *(s for s in setups if not s.is_dense)]


def _setup(row: Row, configs: Sequence[Config], name: Callable[[Config], str]) -> Setup:
    config = next(
        candidate
        for candidate in configs
        if candidate.reducer == row.reducer and candidate.to_dict()["reducer_options"] == dict(row.options)
    )
    bucket_mb = config.bucket_mb if row.bucket_mb is None else row.bucket_mb
    chosen = replace(config, mount=row.mount, bucket_mb=bucket_mb)
    return Setup(
        chosen,
        is_dense=row.verdict == "dense",
        predicted_seconds=row.seconds,
        name=name(chosen),
    )
