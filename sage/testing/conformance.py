"""The invariants of every reducer, as code: the tests check every reducer, `sage conform` checks one.

Each function runs a few reductions on W ranks and raises `Broken` where its invariant does not hold. Where it
cannot check it, or a part of it, it notes the reason in `Case.unchecked`: what was not checked is never
reported as kept. Ranks are threads here; the tests run the same functions on gloo processes.
"""
# W = world size, N = elements of the flat vector

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sage import registry
from sage.comm.wire import Wire
from sage.reduction.error_feedback import ErrorFeedback
from sage.testing.harness import (
    Broken,
    Case,
    Step,
    agree,
    close,
    conserved,
    mean,
    odd_gradients,
    reduce_once,
    same_bits,
    steps,
)
from sage.testing.verdicts import show, verdict

LONG = (("long", (70_001,)),)
"""A vector whose indices fit neither 15 nor 16 bits."""


def ranks_agree(case: Case) -> None:
    """Every rank gets the same mean, to the bit, and is told the same density."""
    if case.world_size == 1:
        case.skip("one rank has no other to agree with")
    agree(steps(case, case.gradient))


def nothing_is_lost(case: Case) -> None:
    """residual_before + gradient = sent + residual_after, and the mean is the mean over ranks of sent."""
    conserved(case, steps(case, case.gradient))


def uneven_ranks_lose_nothing(case: Case) -> None:
    """The same where ranks differ in scale by powers of ten, so that counts differ as far as they can."""
    seen = steps(case, lambda rank, step: case.gradient(rank, step) * 10.0**rank)
    agree(seen)
    conserved(case, seen)


def far_elements_keep_their_places(case: Case) -> None:
    """The same in a vector of 70,001 elements, the largest at its end: indices of 16 bits are too short."""

    def gradient(rank: int, step: int) -> Tensor:
        grad_N = case.gradient(rank, step, LONG)
        grad_N[-20:] += 1000
        return grad_N

    seen = steps(case, gradient, count=2, shapes=LONG)
    agree(seen)
    conserved(case, seen)


def every_grouping_keeps_the_laws(case: Case) -> None:
    """Grouped by model, by layer and by bucket: agreement, nothing lost."""
    for grouping in ("model", "layer", "bucket:0.0035"):
        grouped = replace(case, grouping=grouping)
        try:
            seen = steps(grouped, case.gradient)
            agree(seen)
            conserved(grouped, seen)
        except Broken as broken:
            raise Broken(f"grouping {grouping}: {broken}") from broken


def odd_inputs_are_survived(case: Case) -> None:
    """Tiny, empty, constant, zero, negative, one-sided and denormal gradients: agreement, nothing lost."""
    for name, shapes, gradient in odd_gradients(case):
        try:
            seen = steps(case, gradient, count=2, shapes=shapes)
            agree(seen)
            conserved(case, seen)
        except Broken as broken:
            raise Broken(f"{name}: {broken}") from broken


def density_one_is_all_reduce(case: Case) -> None:
    """Where everything is sent, as at density 1, the mean is the all-reduce's, and nothing stays behind."""
    has_density = "density" in registry.options(case.make)
    whole = replace(case, options={"density": 1.0}) if has_density else case
    reducer = whole.reducer()
    if reducer.rounds:
        case.skip("the reducer states rounds = True: to send everything is not yet an all-reduce")
        return
    precision, num_checked = reducer.precision, 0
    for step in zip(*steps(whole, case.gradient), strict=True):
        if any(s.reduced.sent is not None and s.reduced.sent.numel() < s.mean_N.numel() for s in step):
            if has_density:
                raise Broken("at density 1 some elements are not sent")
            continue
        num_checked += 1
        expected_N = mean([s.signal_N for s in step])
        close(step[0].mean_N, expected_N, precision, "the mean of everything")
        for s in step:
            if s.left_N is not None:
                scale = float(s.signal_N.abs().max())
                close(s.left_N, torch.zeros_like(s.left_N), precision, "the residual of nothing", scale)
    if not num_checked:
        case.skip("the reducer has no option density, and never sent everything")


def density_is_what_was_sent(case: Case) -> None:
    """The density told is the share of elements sent, averaged over ranks; no element is sent twice."""
    for step in zip(*steps(case, case.gradient), strict=True):
        n = step[0].mean_N.numel()
        sent = [s.reduced.sent for s in step if s.reduced.sent is not None]
        for rank, at_K in enumerate(sent):
            if len(set(at_K.tolist())) < at_K.numel() or not set(at_K.tolist()) <= set(range(n)):
                raise Broken(f"rank {rank}'s `sent` repeats an index, or names one outside of the vector")
        # `sent` of None states that everything left the rank.
        had = sum(n if s.reduced.sent is None else s.reduced.sent.numel() for s in step) / (len(step) * n)
        if not math.isclose(step[0].reduced.density, had, rel_tol=1e-6):
            raise Broken(
                f"the density told is {step[0].reduced.density:.6g}; what was sent comes to {had:.6g}"
            )


def ledger_equals_bytes_by_hand(case: Case) -> None:
    """The ledger's payload, by kind, is what the layout in the docstring comes to."""
    reducer = case.fresh().reducer
    for step in zip(*steps(case, case.gradient), strict=True):
        counts = [s.mean_N.numel() if s.reduced.sent is None else s.reduced.sent.numel() for s in step]
        for rank, s in enumerate(step):
            expected = reducer.payload(counts, rank)
            if expected is None:
                case.skip("payload() states no bytes: the ledger has nothing to be compared with")
            elif _nonzero(expected) != _nonzero(s.payload):
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
    conserved(case, [[step]])


def negative_values_are_sent(case: Case) -> None:
    """A gradient that is negative everywhere reaches the mean (thresholds compare with |x|, not x)."""
    seen = steps(case, lambda rank, step: -case.gradient(rank, step).abs() - 1)
    if not any(step.mean_N.min() < 0 for step in seen[0]):
        raise Broken("a gradient that is negative everywhere leaves no trace in the mean")


def nan_is_seen(case: Case) -> None:
    """NaN and ∞ on one rank go where a large number would: into every mean, and out of the residual."""
    culprit = case.world_size - 1

    def with_spike(spike: float) -> list[list[Step]]:
        def gradient(rank: int, step: int) -> Tensor:
            grad_N = case.gradient(rank, step)
            if step == 1 and rank == culprit:
                grad_N[5] = spike
            return grad_N

        return steps(case, gradient, count=3)

    sent = with_spike(1000.0)[culprit][1].reduced.sent
    if sent is not None and 5 not in sent.tolist():
        case.skip("elements are selected whatever their size, and the one that is not finite was not")
        return
    for spike in (math.nan, math.inf):
        for rank, (_, during, after) in enumerate(with_spike(spike)):
            if bool(during.mean_N.isfinite().all()):
                raise Broken(f"rank {rank}'s mean shows nothing of the {spike} on rank {culprit}")
            if during.left_N is not None and not bool(during.left_N.isfinite().all()):
                raise Broken(f"rank {rank} keeps a {spike} in its residual")
            if not bool(after.mean_N.isfinite().all()):
                raise Broken(f"rank {rank} has not recovered a step after a {spike}")


def resumed_equals_uninterrupted(case: Case) -> None:
    """state_dict, a new reducer, load_state_dict: it goes on as if it had never stopped, to the bit."""
    # Epochs in which a reducer may change its mind: round numbers, a fall of the learning rate.
    epochs = {0: (0, 0.1), 2: (10, 0.1), 4: (20, 0.1), 6: (21, 0.05)}

    def work(wire: Wire) -> bool:
        def play(feedback: ErrorFeedback, some: range) -> list[Tensor]:
            means = []
            for step in some:
                if step in epochs:
                    feedback.reducer.begin_epoch(*epochs[step], wire)
                means.append(feedback(case.gradient(wire.rank, step), wire).mean_N.clone())
            return [*means, *feedback.state_dict().values()]

        whole, first, second = case.fresh(), case.fresh(), case.fresh()
        play(first, range(3))
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        expected, resumed = play(whole, range(8))[3:], play(second, range(3, 8))
        return all(same_bits(a, b) for a, b in zip(expected, resumed, strict=True))

    if not all(case.run(case.world_size, work)):
        raise Broken("after save and load the means, or the state, differ from the uninterrupted run's")


def global_random_state_is_untouched(case: Case) -> None:
    """Reducing draws nothing from, and does not reseed, the global generators of torch, numpy and Python."""

    def work(wire: Wire) -> bool:
        torch.rand(())  # a state that no seed gives
        before = _random_state()
        feedback = case.fresh()
        feedback.reducer.begin_epoch(0, 0.1, wire)
        feedback(case.gradient(wire.rank, 0), wire)
        return _random_state() == before

    if not all(case.run(case.world_size, work)):
        raise Broken("a global random state has changed")


LAWS: tuple[Callable[[Case], None], ...] = (
    ranks_agree,
    nothing_is_lost,
    uneven_ranks_lose_nothing,
    far_elements_keep_their_places,
    every_grouping_keeps_the_laws,
    odd_inputs_are_survived,
    density_one_is_all_reduce,
    density_is_what_was_sent,
    ledger_equals_bytes_by_hand,
    alone_nothing_crosses_the_link,
    negative_values_are_sent,
    nan_is_seen,
    resumed_equals_uninterrupted,
    global_random_state_is_untouched,
)


IN_PART = frozenset(
    {
        uneven_ranks_lose_nothing,
        far_elements_keep_their_places,
        every_grouping_keeps_the_laws,
        odd_inputs_are_survived,
        alone_nothing_crosses_the_link,
    }
)
"""Of these something is checked, such as the ranks' agreement, also where they note a reason not to."""


def main(name: str, options: Mapping[str, Any], world_sizes: Sequence[int]) -> int:
    """Check one reducer against every invariant and print the verdicts (`sage.testing.verdicts`).

    Returns:
        The exit status: 0 where no invariant is broken, else 1.

    Raises:
        ValueError: where an option or a number of ranks is out of range.
    """
    if not world_sizes or min(world_sizes) < 1:
        raise ValueError(f"world_sizes is {list(world_sizes)}; allowed are numbers of ranks, each 1 or more")
    make = registry.load("reducers", name)
    make(**options)  # a wrong option is the user's mistake, and no broken invariant
    torch.set_num_threads(1)  # for vectors as short as these, torch's threads cost more than they give
    found = [
        verdict(law, make, options, world_size, in_part=law in IN_PART)
        for law in LAWS
        for world_size in world_sizes
    ]
    show(name, found)
    return 1 if any(each.broken for each in found) else 0


def _random_state() -> tuple[object, ...]:
    _, key, position, *_ = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.asarray(key).tobytes(), position


def _nonzero(payload: Mapping[str, int]) -> dict[str, int]:
    return {kind: size for kind, size in sorted(payload.items()) if size}
