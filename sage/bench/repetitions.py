"""Repeated reductions: every reducer on the same vectors, alternating, each time without earlier state.

A reducer runs on a wire that returns at once (sage/bench/loopback_wire.py). It starts each round
without state, so rounds are independent. The reducers compared on an input alternate in an order drawn for
each round, so other load on the machine affects all of them alike.
"""
# N = elements of an input

import math
import random
import statistics
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sage import registry
from sage.bench.loopback_wire import LoopbackWire
from sage.predict.decode_fit import fitted
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.reduction.reducer import Reducer, check_fraction

if TYPE_CHECKING:
    from sage.bench.gradients import Gradients

COLUMNS = 1024
"""Elements per row of a random input: low-rank methods need a matrix."""


@dataclass(frozen=True)
class Input:
    """A gradient to compress."""

    name: str
    shape: tuple[int, ...]
    before: list[Tensor]
    """Gradients that are reduced before it, untimed, so that a reducer can settle."""
    gradient_N: Tensor
    """The gradient whose reduction is timed."""


@dataclass(frozen=True)
class Case:
    """A reducer with its options; the name is its text on the command line."""

    name: str
    make: Callable[..., Reducer]
    options: Mapping[str, Any]

    @property
    def density(self) -> float | None:
        """The target density; None for a reducer without one."""
        return self.options.get("density")


@dataclass(frozen=True)
class Round:
    """The measurements of one reduction."""

    compress: float
    """Seconds."""
    decompress: float
    """Seconds."""
    sent: int | None
    """Elements."""
    payload: int
    """Bytes."""


@dataclass(frozen=True)
class Spread:
    """Seconds over the rounds."""

    mean: float
    std: float
    least: float
    """The minimum, which is least affected by other work on the machine."""
    low: float
    """The lower quartile."""
    median: float
    high: float
    """The upper quartile."""


@dataclass(frozen=True)
class Row:
    """One case on one input: its rounds, or its error."""

    input: str
    elements: int
    case: Case
    rounds: list[Round]
    error: str = ""
    decode: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """Seconds of `decompress` by round for each number of payloads W."""

    @property
    def decode_fit(self) -> tuple[float, float]:
        """t_d0 and t_d1: decoding W payloads takes t_d0 + W·t_d1 seconds, by the medians."""
        return fitted({world_size: statistics.median(seconds) for world_size, seconds in self.decode.items()})

    @property
    def compress(self) -> Spread:
        return spread([measured.compress for measured in self.rounds])

    @property
    def decompress(self) -> Spread:
        return spread([measured.decompress for measured in self.rounds])

    @property
    def dense(self) -> int:
        """Bytes of the input."""
        return 4 * self.elements

    @property
    def sent(self) -> int | None:
        """Elements sent; None for a reducer that does not send elements."""
        return self.rounds[-1].sent

    @property
    def payload(self) -> int:
        """Payload bytes of every kind."""
        return self.rounds[-1].payload

    @property
    def sent_over_k(self) -> float | None:
        """Elements sent / k, with the target k = max(1, ⌊density·n⌋)."""
        density = self.case.density
        if self.sent is None or density is None:
            return None
        return self.sent / max(1, int(round(density * self.elements, 12)))

    @property
    def megabytes_per_second(self) -> float:
        """10^6 bytes of the dense gradient per second of compression, at the median."""
        seconds = self.compress.median
        return self.dense / 1e6 / seconds if seconds else math.inf


def cases_of(spec: str, densities: Sequence[float]) -> list[Case]:
    """The cases of a reducer given by name and options, as in `sage:controller=sage,agree=true`.

    One case per density; a single case if the reducer has no density or its density is given in `spec`.

    Raises:
        ValueError: The reducer, an option or a value does not exist.

    >>> [case.options["density"] for case in cases_of("topk", [0.1, 0.01])]
    [0.1, 0.01]
    >>> [case.density for case in cases_of("exact", [0.1, 0.01])]
    [None]
    """
    name, given = parsed(spec)
    make = registry.load("reducers", name)
    options = registry.check_options("reducers", name, given)
    if "density" not in options or "density" in given:
        return [Case(spec, make, options)]
    return [Case(spec, make, {**options, "density": check_fraction("density", d)}) for d in densities]


def parsed(spec: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the given options of a reducer.

    Raises:
        ValueError: A part after the colon is not OPTION=VALUE.

    >>> parsed("sage:controller=sage,agree=true"), parsed("exact")
    (('sage', {'controller': 'sage', 'agree': True}), ('exact', {}))
    """
    name, _, text = spec.partition(":")
    return name, dict(_option(spec, part) for part in text.split(",")) if text else {}


def _option(spec: str, text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--reducers {spec}: {text!r} is not OPTION=VALUE, as in topk:values=fp16")
    try:
        return name.replace("-", "_"), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:  # a word without quotation marks
        return name.replace("-", "_"), value


def inputs(
    mib: Sequence[float], traces: Sequence[Path], step: int, settle: int, seed: int, device: torch.device
) -> Iterator[Input]:
    """N(0, 1) vectors of each size, as matrices of 1,024 columns, and rank 0's gradient of each trace.

    Args:
        mib: Sizes in 2^20 bytes of fp32.
        traces: Traces of `sage bench record`, .npy vectors, or folders of them.
        step: The step of a trace whose gradient is timed; the last step of a shorter trace.
        settle: The number of gradients reduced before it.
        seed: Seed of the N(0, 1) vectors.
        device: The device of all inputs.
    """
    recorded = _loaded(traces) if traces else []  # an invalid file is reported before any measurement
    for path, trace in zip(traces, recorded, strict=True):
        if settle > min(step, len(trace) - 1):
            last = min(step, len(trace) - 1)
            raise ValueError(f"{path}: --settle {settle} needs as many gradients before step {last}")
    for each_mib in mib:
        rows = max(1, round(each_mib * 2**18 / COLUMNS))
        drawn = [
            torch.randn(rows * COLUMNS, generator=torch.Generator().manual_seed(seed + number)).to(device)
            for number in range(settle + 1)
        ]
        yield Input(f"N(0, 1), {each_mib:g} MiB", (rows, COLUMNS), drawn[1:], drawn[0])
    for trace in recorded:
        last = min(step, len(trace) - 1)
        *before, gradient_N = [trace.gradient(i, 0).to(device) for i in range(last - settle, last + 1)]
        yield Input(f"{trace.name}, step {last}", (gradient_N.numel(),), before, gradient_N)


def _loaded(paths: Sequence[Path]) -> list["Gradients"]:
    from sage.bench import recorded  # imports what training needs, and a GPU may be checked without it

    return [recorded.load(path) for path in paths]


def measure(
    given: Input,
    cases: Sequence[Case],
    rounds: int,
    warmup: int,
    seed: int,
    world_sizes: Sequence[int] = (1,),
) -> list[Row]:
    """Measure all cases, alternating in each round; a case that fails is skipped from then on.

    The rounds are those of the first world size; of the others, only the decoding is kept.
    """
    draw = random.Random(seed)
    measured: list[list[Round]] = [[] for _ in cases]
    decode: list[dict[int, list[float]]] = [{w: [] for w in world_sizes} for _ in cases]
    errors: dict[int, str] = {}
    for number in range(warmup + rounds):
        live = [i for i in range(len(cases)) if i not in errors]
        for i in draw.sample(live, len(live)):
            try:
                once = [reduce_once(cases[i], given, w) for w in world_sizes]
            except Exception as error:  # a third-party reducer may raise anything; its row has the error
                errors[i] = " ".join(f"{type(error).__name__}: {error}".split())
            else:
                if number < warmup:
                    continue
                measured[i].append(once[0])
                for world_size, timed in zip(world_sizes, once, strict=True):
                    decode[i][world_size].append(timed.decompress)
    n = given.gradient_N.numel()
    return [
        Row(given.name, n, case, measured[i], errors.get(i, ""), decode[i]) for i, case in enumerate(cases)
    ]


def reduce_once(case: Case, given: Input, world_size: int = 1) -> Round:
    """One reduction by a new reducer, with a new residual and a new wire of W equal ranks."""
    device = given.gradient_N.device
    wire = LoopbackWire(device, world_size)
    reducer = case.make(**case.options)
    layout = Layout.of([("input", given.shape)], reducer.grouping)
    feedback = ErrorFeedback(reducer, layout).to(device)
    reducer.begin_epoch(0, 0.1, wire)
    for gradient_N in given.before:
        feedback(gradient_N.clone(), wire)
    before = wire.ledger.copy()
    grad_N = given.gradient_N.clone()
    reduced, compress, decompress = wire.timed(lambda: feedback(grad_N, wire))
    sent = None if reduced.sent is None else reduced.sent.numel()
    return Round(compress, decompress, sent, wire.ledger.since(before).payload.total())


def spread(seconds: Sequence[float]) -> Spread:
    """The spread of two or more values."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Spread(statistics.fmean(seconds), statistics.stdev(seconds), min(seconds), low, median, high)
