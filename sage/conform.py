"""The laws every reducer must keep, as code: the tests run them over every reducer found, `sage conform` over yours.

Each law runs a few reductions on W ranks and raises `Broken` where the law does not hold. Ranks are threads here; the
tests run the same laws on gloo processes.
"""
# W = world size, N = elements of the flat vector

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sage import registry
from sage.layout import Layout
from sage.reduce import ErrorFeedback, Reduced, Reducer
from sage.threads import simulate
from sage.wire import Wire

SHAPES = (("conv", (8, 3, 3, 3)), ("wide", (40, 20)), ("bias", (7,)))
"""The parameters of the toy model that the laws reduce: sizes that no power of two divides, one of them tiny."""


class Broken(AssertionError):
    """A law does not hold; the message says what was seen."""


class Run(Protocol):
    """Something that runs `work(wire)` on W ranks and returns the results by rank."""

    def __call__(self, world_size: int, work: Callable[[Wire], Any]) -> list[Any]: ...


@dataclass(frozen=True)
class Case:
    """One reducer under test: how to make one, and on what ranks to run it."""

    make: Callable[..., Reducer]
    options: Mapping[str, Any]
    world_size: int
    run: Run = simulate
    grouping: str | None = None
    memory: str | None = None

    def fresh(self, shapes: Iterable[tuple[str, tuple[int, ...]]] = SHAPES) -> ErrorFeedback:
        """A new reducer with error feedback, the same on every rank."""
        reducer = self.make(**self.options)
        layout = Layout.of(shapes, self.grouping or reducer.grouping)
        return ErrorFeedback(reducer, layout, memory=self.memory or reducer.memory)  # type: ignore[arg-type]

    def gradient(self, rank: int, step: int, shapes: Iterable[tuple[str, tuple[int, ...]]] = SHAPES) -> Tensor:
        """A gradient that differs between ranks and steps and has, as real ones do, a heavy tail and a drifting scale."""
        n = Layout.of(shapes).numel
        generator = torch.Generator().manual_seed(1000 * step + rank)
        normal_N = torch.randn(n, generator=generator)
        return normal_N * torch.randn(n, generator=generator).exp() * 0.9**step


@dataclass
class Step:
    """What one rank saw of one reduction."""

    signal_N: Tensor
    mean_N: Tensor
    left_N: Tensor | None
    reduced: Reduced
    payload: dict[str, int]


def steps(case: Case, gradients: Callable[[int, int], Tensor], count: int = 4, **fresh: Any) -> list[list[Step]]:
    """`count` reductions of `gradients(rank, step)`: what each rank saw, by rank."""

    def work(wire: Wire) -> list[Step]:
        feedback = case.fresh(**fresh)
        feedback.reducer.begin_epoch(0, 0.1, wire)
        return [reduce_once(feedback, gradients(wire.rank, step), wire) for step in range(count)]

    return case.run(case.world_size, work)


def reduce_once(feedback: ErrorFeedback, grad_N: Tensor, wire: Wire) -> Step:
    """One reduction, with what went in and what came out kept."""
    residual_N = feedback.residual_N
    signal_N = grad_N.clone() if residual_N is None else residual_N + grad_N
    before = wire.ledger.copy()
    reduced = feedback(grad_N.clone(), wire)
    booked = dict(wire.ledger.since(before).payload)
    left_N = None if residual_N is None else residual_N.clone()
    return Step(signal_N, reduced.mean_N.clone(), left_N, reduced, booked)


# The laws. Each takes a case and raises Broken.


def ranks_agree(case: Case) -> None:
    """Every rank gets the same mean, to the bit, and hears the same density."""
    _agree(steps(case, case.gradient))


def nothing_is_lost(case: Case) -> None:
    """residual_before + gradient = sent + residual_after, and the mean is the mean over ranks of what was sent."""
    _conserved(case, steps(case, case.gradient))


def uneven_ranks_lose_nothing(case: Case) -> None:
    """The same where ranks differ in scale by powers of ten, so that counts differ as far as they can."""
    seen = steps(case, lambda rank, step: case.gradient(rank, step) * 10.0**rank)
    _agree(seen)
    _conserved(case, seen)


def density_one_is_all_reduce(case: Case) -> None:
    """With everything sent, the mean is the all-reduce's, and nothing stays in the residual."""
    probe = case.make(**case.options)
    options = {**case.options, **({"density": 1.0} if hasattr(probe, "density") else {})}
    if "threshold" in options:
        options["threshold"] = None
    for step in zip(*steps(replace(case, options=options), case.gradient), strict=True):
        _close(step[0].mean_N, _mean([s.signal_N for s in step]), probe.precision, "the mean at density 1")


def resumed_equals_uninterrupted(case: Case) -> None:
    """state_dict, a new reducer, load_state_dict: it goes on as if it had never stopped, to the bit."""

    def work(wire: Wire) -> bool:
        def play(feedback: ErrorFeedback, some: range) -> Tensor:
            means = [feedback(case.gradient(wire.rank, step), wire).mean_N.clone() for step in some]
            return torch.stack(means)

        whole, first = case.fresh(), case.fresh()
        for feedback in (whole, first):
            feedback.reducer.begin_epoch(0, 0.1, wire)
        expected = play(whole, range(6))[3:]
        play(first, range(3))
        state = copy.deepcopy(first.state_dict())
        second = case.fresh()
        second.load_state_dict(state)
        return _same_bits(play(second, range(3, 6)), expected)

    if not all(case.run(case.world_size, work)):
        raise Broken("after save and load the means differ from the uninterrupted run's")


def ledger_equals_bytes_by_hand(case: Case) -> None:
    """The ledger's payload, by kind, is what the layout in the docstring comes to."""
    reducer = case.make(**case.options)
    seen = steps(case, case.gradient)
    for step in zip(*seen, strict=True):
        counts = [s.mean_N.numel() if s.reduced.sent is None else s.reduced.sent.numel() for s in step]
        for rank, s in enumerate(step):
            expected = reducer.payload(counts, rank)
            if expected is not None and _nonzero(expected) != _nonzero(s.payload):
                raise Broken(f"rank {rank} booked {_nonzero(s.payload)}; by hand it is {_nonzero(expected)}")


def alone_nothing_crosses_the_link(case: Case) -> None:
    """With one rank the mean is what was sent, and no byte is sent or received."""

    def work(wire: Wire) -> tuple[Step, int]:
        feedback = case.fresh()
        step = reduce_once(feedback, case.gradient(0, 0), wire)
        return step, wire.ledger.sent + wire.ledger.received

    ((step, crossed),) = case.run(1, work)
    if crossed:
        raise Broken(f"{crossed} bytes crossed the link of a world of one")
    _conserved(case, [[step]])


def odd_inputs_are_survived(case: Case) -> None:
    """Tiny, empty, constant, all-zero, all-negative, one-sided and denormal gradients: agreement, nothing lost."""
    for name, gradient in _odd_inputs(case):
        try:
            seen = steps(case, lambda rank, _, g=gradient: g(rank), count=3)
            _agree(seen)
            _conserved(case, seen)
        except Broken as broken:
            raise Broken(f"{name}: {broken}") from broken
    for n in (0, 1, 2):
        shapes = (("only", (n,)),)
        seen = steps(case, lambda rank, _, n=n: torch.full((n,), 1.0 + rank), shapes=shapes)
        _agree(seen)
        _conserved(case, seen)


def negative_values_are_sent(case: Case) -> None:
    """A gradient that is negative everywhere reaches the mean (thresholds compare with |x|, not x)."""
    seen = steps(case, lambda rank, step: -case.gradient(rank, step).abs() - 1)
    if not seen[0][-1].mean_N.min() < 0:
        raise Broken("a gradient that is negative everywhere leaves no trace in the mean")


def nan_is_seen(case: Case) -> None:
    """A NaN on one rank is seen in every rank's mean, and does not hide in a residual."""

    def gradient(rank: int, step: int) -> Tensor:
        grad_N = case.gradient(rank, step)
        if step == 1 and rank == case.world_size - 1:
            grad_N[5] = math.nan
        return grad_N

    seen = steps(case, gradient, count=2)
    for rank, (_, last) in enumerate(seen):
        if bool(last.mean_N.isfinite().all()):
            raise Broken(f"rank {rank} saw nothing of the NaN on rank {case.world_size - 1}")
        if last.left_N is not None and not bool(last.left_N.isfinite().all()):
            raise Broken(f"rank {rank} keeps a NaN in its residual")


def global_random_state_is_untouched(case: Case) -> None:
    """Reducing draws nothing from, and does not reseed, torch's global generator."""

    def work(wire: Wire) -> bool:
        feedback = case.fresh()
        torch.manual_seed(7)
        before = torch.get_rng_state()
        feedback(case.gradient(wire.rank, 0), wire)
        return torch.equal(before, torch.get_rng_state())

    if not all(case.run(case.world_size, work)):
        raise Broken("torch's global random state has changed")


def every_grouping_keeps_the_laws(case: Case) -> None:
    """Grouped by model, by layer and by bucket: agreement, nothing lost."""
    for grouping in ("model", "layer", "bucket:0.002"):
        grouped = replace(case, grouping=grouping)
        seen = steps(grouped, case.gradient)
        try:
            _agree(seen)
            _conserved(grouped, seen)
        except Broken as broken:
            raise Broken(f"grouping {grouping}: {broken}") from broken


LAWS: tuple[Callable[[Case], None], ...] = (
    ranks_agree,
    nothing_is_lost,
    uneven_ranks_lose_nothing,
    density_one_is_all_reduce,
    resumed_equals_uninterrupted,
    ledger_equals_bytes_by_hand,
    alone_nothing_crosses_the_link,
    odd_inputs_are_survived,
    negative_values_are_sent,
    nan_is_seen,
    global_random_state_is_untouched,
    every_grouping_keeps_the_laws,
)


def main(name: str, options: Mapping[str, Any], world_sizes: Sequence[int]) -> int:
    """Hold one reducer against every law and print what it kept; 0 where it kept all of them, else 1."""
    make = registry.load("reducers", name)
    table = Table("law", *(f"W = {w}" for w in world_sizes), title=f"{name}: laws kept", title_justify="left")
    complaints = []
    for law in LAWS:
        row = []
        for world_size in world_sizes:
            try:
                law(Case(make, options, world_size))
                row.append("[green]kept[/]")
            except Exception as error:  # a law may be broken in any way at all
                row.append("[red]broken[/]")
                complaints.append(f"{law.__name__}, W = {world_size}: {type(error).__name__}: {error}")
        table.add_row(law.__name__.replace("_", " "), *row)
    console = Console(highlight=False)
    console.print(table)
    for complaint in complaints:
        console.print(complaint, markup=False)
    return 1 if complaints else 0


# What the laws are made of.


def _odd_inputs(case: Case) -> Iterator[tuple[str, Callable[[int], Tensor]]]:
    n = Layout.of(SHAPES).numel
    yield "constant", lambda rank: torch.ones(n)
    yield "all zero", lambda rank: torch.zeros(n)
    yield "all negative", lambda rank: -1 - case.gradient(rank, 0).abs()
    yield "zero on all ranks but one", lambda rank: case.gradient(0, 0) * (rank == 0)
    yield "one element", lambda rank: (torch.arange(n) == rank).float()
    yield "denormal", lambda rank: torch.full((n,), 1e-41)
    yield "70 % zeros", lambda rank: case.gradient(rank, 0) * (torch.arange(n) % 10 < 3)


def _agree(seen: list[list[Step]]) -> None:
    for number, step in enumerate(zip(*seen, strict=True)):
        for rank, s in enumerate(step):
            if not _same_bits(s.mean_N, step[0].mean_N):
                raise Broken(f"step {number}: the means of ranks 0 and {rank} differ")
            if s.reduced.density != step[0].reduced.density:
                raise Broken(f"step {number}: the densities reported by ranks 0 and {rank} differ")


def _conserved(case: Case, seen: list[list[Step]]) -> None:
    reducer = case.make(**case.options)
    if not reducer.conserves:
        return
    for number, step in enumerate(zip(*seen, strict=True)):
        if step[0].left_N is None:
            continue
        gone = _mean([s.signal_N - s.left_N for s in step if s.left_N is not None])
        scale = max(float(s.signal_N.abs().max()) if s.signal_N.numel() else 0.0 for s in step)
        _close(step[0].mean_N, gone, reducer.precision, f"step {number}: the mean of what was sent", scale)
        for rank, s in enumerate(step):
            if s.reduced.sent is None or s.left_N is None:
                continue
            kept_N = torch.ones_like(s.left_N, dtype=torch.bool)
            kept_N[s.reduced.sent] = False
            if not _same_bits(s.left_N[kept_N], s.signal_N[kept_N]):
                raise Broken(f"step {number}: rank {rank}'s residual has changed where nothing was sent")


def _close(seen: Tensor, expected: Tensor, precision: float, what: str, scale: float | None = None) -> None:
    if expected.numel() == 0:
        return
    scale = float(expected.abs().max()) if scale is None else scale
    off = float((seen - expected).abs().max())
    if not off <= precision * scale + 1e-37:
        raise Broken(f"{what} is off by {off:.3g} where values reach {scale:.3g} (allowed: {precision * scale:.3g})")


def _mean(xs: list[Tensor]) -> Tensor:
    return torch.stack(xs).mean(0)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _nonzero(payload: Mapping[str, int]) -> dict[str, int]:
    return {kind: size for kind, size in sorted(payload.items()) if size}
