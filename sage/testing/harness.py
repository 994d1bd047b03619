"""Harness of the conformance tests: runs reductions on W ranks, records the results and compares them."""
# W = world size, N = elements of the flat vector

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sage.comm.packing import pack
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.reduction.reducer import Reduced, Reducer, Sparsifier

Shapes = Iterable[tuple[str, tuple[int, ...]]]
StepsByRank = list[list["Step"]]
"""Recorded steps, first by rank, then by step."""

SHAPES = (("conv", (8, 3, 3, 3)), ("wide", (40, 20)), ("bias", (7,)))
"""Parameters of the toy model: sizes not divisible by powers of two, one of them tiny."""

LEAST = 1e-43
"""Absolute tolerance of sums and divisions of denormals."""


class Broken(AssertionError):
    """An invariant does not hold; the message says what was observed."""


class Run(Protocol):
    """Runs `work(wire)` on W ranks and returns the results by rank."""

    def __call__(self, world_size: int, work: Callable[[Wire], Any]) -> list[Any]: ...


@dataclass(frozen=True)
class Case:
    """One reducer under test: how to create it and on which ranks to run it."""

    make: Callable[..., Reducer]
    options: Mapping[str, Any]
    world_size: int
    run: Run = simulate
    grouping: str | None = None
    memory: Literal["none", "residual"] | None = None
    unchecked: list[str] = field(default_factory=list, compare=False)
    """Reasons why an invariant, or a part of it, was not checked; invariants add to it."""

    def skip(self, reason: str) -> None:
        """Record why an invariant was not checked."""
        if reason not in self.unchecked:
            self.unchecked.append(reason)

    def reducer(self) -> Reducer:
        """A new reducer, not yet bound."""
        return self.make(**self.options)

    def fresh(self, shapes: Shapes = SHAPES) -> ErrorFeedback:
        """A new reducer with error feedback, the same on every rank."""
        reducer = self.reducer()
        layout = Layout.of(shapes, self.grouping or reducer.grouping)
        return ErrorFeedback(reducer, layout, memory=self.memory)

    def gradient(self, rank: int, step: int, shapes: Shapes = SHAPES) -> Tensor:
        """A gradient specific to rank and step, with a heavy tail and a drifting scale as in training."""
        n = Layout.of(shapes).numel
        generator = torch.Generator().manual_seed(1000 * step + rank)
        normal_N = torch.randn(n, generator=generator)
        return normal_N * torch.randn(n, generator=generator).exp() * 0.9**step

    @cached_property
    def usual_steps(self) -> StepsByRank:
        """Three recorded reductions of `gradient`; they run once, for all invariants that examine them."""
        return steps(self, self.gradient)


@dataclass
class Step:
    """What one rank observed in one reduction."""

    signal_N: Tensor
    """Residual before + gradient."""
    mean_N: Tensor
    left_N: Tensor | None
    """Residual after the step; None without error feedback."""
    reduced: Reduced
    payload: dict[str, int]


def steps(
    case: Case, gradients: Callable[[int, int], Tensor], count: int = 3, shapes: Shapes = SHAPES
) -> StepsByRank:
    """Run `count` reductions of `gradients(rank, step)` and record them."""

    def work(wire: Wire) -> list[Step]:
        feedback = case.fresh(shapes)
        feedback.reducer.begin_epoch(0, 0.1, wire)
        return [reduce_once(feedback, gradients(wire.rank, step), wire) for step in range(count)]

    return case.run(case.world_size, work)


def reduce_once(feedback: ErrorFeedback, grad_N: Tensor, wire: Wire) -> Step:
    """Run one reduction and record its input and output."""
    residual_N = feedback.residual_N
    signal_N = grad_N.clone() if residual_N is None else residual_N + grad_N
    before = wire.ledger.copy()
    reduced = feedback(grad_N.clone(), wire)
    payload = dict(wire.ledger.since(before).payload)
    payload.pop("guard", None)  # bytes of the schedule guard, if it is on
    left_N = None if residual_N is None else residual_N.clone()
    return Step(signal_N, reduced.mean_N.clone(), left_N, reduced, payload)


def odd_gradients(case: Case) -> Iterator[tuple[str, Shapes, Callable[[int, int], Tensor]]]:
    """Edge cases: a name, the shapes, and the gradient of each rank and step."""
    n = Layout.of(SHAPES).numel
    yield "constant", SHAPES, lambda rank, step: torch.ones(n)
    yield "all zero", SHAPES, lambda rank, step: torch.zeros(n)
    yield "all negative", SHAPES, lambda rank, step: -1 - case.gradient(rank, 0).abs()
    yield "zero on all ranks but one", SHAPES, lambda rank, step: case.gradient(0, 0) * (rank == 0)
    yield "one element", SHAPES, lambda rank, step: (torch.arange(n) == rank).float()
    yield "denormal", SHAPES, lambda rank, step: torch.full((n,), 1e-41)
    yield "70 % zeros", SHAPES, lambda rank, step: case.gradient(rank, 0) * (torch.arange(n) % 10 < 3)
    yield "two elements", (("only", (2,)),), lambda rank, step: torch.full((2,), 1.0 + rank)
    yield "a single element", (("only", (1,)),), lambda rank, step: torch.full((1,), 1.0 + rank)
    yield "an empty parameter", (("only", (0,)),), lambda rank, step: torch.empty(0)
    yield "no parameters", (), lambda rank, step: torch.empty(0)


# Comparisons. Each raises Broken.


def agree(by_rank: StepsByRank) -> None:
    """Every rank has a bitwise identical mean and the same density.

    Raises:
        Broken: if not.
    """
    for number, step in enumerate(zip(*by_rank, strict=True)):
        for rank, s in enumerate(step):
            if not same_bits(s.mean_N, step[0].mean_N):
                raise Broken(f"step {number}: the means of ranks 0 and {rank} differ")
            if s.reduced.density != step[0].reduced.density:
                raise Broken(f"step {number}: the densities reported by ranks 0 and {rank} differ")


def conserved(case: Case, by_rank: StepsByRank) -> None:
    """The mean is the mean over ranks of what was sent, and the residual is what was not sent.

    Not checked if the reducer states `conserves = False`, or if only the reducer knows what it has sent
    because there is no residual.

    Raises:
        Broken: if it does not hold.
    """
    reducer = case.reducer()
    if not reducer.conserves:
        case.skip("the reducer states conserves = False: what is sent and what is kept are not compared")
        return
    for number, step in enumerate(zip(*by_rank, strict=True)):
        gone = [_gone(reducer, s) for s in step]
        if any(gone_N is None for gone_N in gone):
            case.skip(
                "without a residual only the reducer knows what it sent: nothing to compare the mean with"
            )
            continue
        scale = max(float(s.signal_N.abs().max()) if s.signal_N.numel() else 0.0 for s in step)
        expected_N = mean([gone_N for gone_N in gone if gone_N is not None])
        close(
            step[0].mean_N, expected_N, reducer.precision, f"step {number}: the mean of what was sent", scale
        )
        for rank, s in enumerate(step):
            if s.reduced.sent is None or s.left_N is None:
                continue
            kept_N = torch.ones_like(s.left_N, dtype=torch.bool)
            kept_N[s.reduced.sent] = False
            if not same_bits(s.left_N[kept_N], s.signal_N[kept_N]):
                raise Broken(f"step {number}: the residual of rank {rank} has changed where nothing was sent")


def _gone(reducer: Reducer, step: Step) -> Tensor | None:
    """What the rank has sent; None if only the reducer knows."""
    if step.left_N is not None:
        return step.signal_N - step.left_N
    if not isinstance(reducer, Sparsifier) or reducer.rounds or step.reduced.sent is None:
        return None
    gone_N = torch.zeros_like(step.signal_N)
    gone_N[step.reduced.sent] = step.signal_N[step.reduced.sent].to(reducer.dtype).to(gone_N.dtype)
    return gone_N


def close(actual: Tensor, expected: Tensor, precision: float, what: str, scale: float | None = None) -> None:
    """Two vectors differ by at most `precision` times the scale, by default the largest expected value.

    Raises:
        Broken: if not; the message begins with `what`.
    """
    if expected.numel() == 0:
        return
    scale = float(expected.abs().max()) if scale is None else scale
    off = float((actual - expected).abs().max())
    if not off <= precision * scale + LEAST:
        allowed = precision * scale
        raise Broken(f"{what} is off by {off:.3g} where values reach {scale:.3g} (allowed: {allowed:.3g})")


def mean(xs: list[Tensor]) -> Tensor:
    """Mean over ranks."""
    return torch.stack(xs).mean(0)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are bitwise identical, with the same shape and dtype."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(pack([a]), pack([b]))
