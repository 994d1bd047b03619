"""The invariants of every reducer, as code: the tests check every reducer, `sage conform` checks one.

Each function runs a few reductions on W ranks and raises `Broken` if its invariant does not hold. If it
cannot check the invariant, or a part of it, it records the reason in `Case.unchecked`, so that nothing
unchecked is reported as kept. Ranks are threads here; the tests run the same functions on gloo processes.
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
"""A vector whose indices need more than 16 bits."""


def ranks_agree(case: Case) -> None:
    """Every rank gets a bitwise identical mean and the same density."""
    if case.world_size == 1:
        case.skip("agreement needs two or more ranks")
    agree(case.usual_steps)


def nothing_is_lost(case: Case) -> None:
    """residual_before + gradient = sent + residual_after, and the mean is the mean over ranks of sent."""
    conserved(case, case.usual_steps)


def uneven_ranks_lose_nothing(case: Case) -> None:
    """The same if ranks differ in scale by powers of ten, so that counts differ as much as possible."""
    by_rank = steps(case, lambda rank, step: case.gradient(rank, step) * 10.0**rank)
    agree(by_rank)
    conserved(case, by_rank)


def far_elements_keep_their_indices(case: Case) -> None:
    """The same for 70,001 elements with the largest at the end, where 16-bit indices are too short."""

    def gradient(rank: int, step: int) -> Tensor:
        grad_N = case.gradient(rank, step, LONG)
        grad_N[-20:] += 1000
        return grad_N

    by_rank = steps(case, gradient, count=2, shapes=LONG)
    agree(by_rank)
    conserved(case, by_rank)


def every_grouping_keeps_the_invariants(case: Case) -> None:
    """Grouped by model, layer and bucket: ranks agree, nothing is lost."""
    for grouping in ("model", "layer", "bucket:0.0035"):
        grouped = replace(case, grouping=grouping)
        try:
            by_rank = steps(grouped, case.gradient)
            agree(by_rank)
            conserved(grouped, by_rank)
        except Broken as broken:
            raise Broken(f"grouping {grouping}: {broken}") from broken


def edge_cases_are_handled(case: Case) -> None:
    """Tiny, empty, constant, zero, negative, one-sided and denormal gradients: agreement, nothing lost."""
    for name, shapes, gradient in odd_gradients(case):
        try:
            by_rank = steps(case, gradient, count=2, shapes=shapes)
            agree(by_rank)
            conserved(case, by_rank)
        except Broken as broken:
            raise Broken(f"{name}: {broken}") from broken


def density_one_is_all_reduce(case: Case) -> None:
    """If everything is sent, as at density 1, the mean is that of an all-reduce and the residual is zero."""
    has_density = "density" in registry.options(case.make)
    whole = replace(case, options={"density": 1.0}) if has_density else case
    reducer = whole.reducer()
    if reducer.rounds:
        case.skip("the reducer states rounds = True: sending everything is not an exact all-reduce")
        return
    precision, num_checked = reducer.precision, 0
    for step in zip(*whole.usual_steps, strict=True):
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
                close(s.left_N, torch.zeros_like(s.left_N), precision, "the residual, expected 0,", scale)
    if not num_checked:
        case.skip("the reducer has no option density and never sent every element")


def density_is_the_share_sent(case: Case) -> None:
    """The reported density is the share of elements sent, averaged over ranks; no element is sent twice."""
    for step in zip(*case.usual_steps, strict=True):
        n = step[0].mean_N.numel()
        sent = [s.reduced.sent for s in step if s.reduced.sent is not None]
        for rank, at_K in enumerate(sent):
            if len(set(at_K.tolist())) < at_K.numel() or not set(at_K.tolist()) <= set(range(n)):
                raise Broken(f"`sent` of rank {rank} repeats an index, or has one outside the vector")
        # `sent` is None if every element was sent.
        achieved = sum(n if s.reduced.sent is None else s.reduced.sent.numel() for s in step) / (
            len(step) * n
        )
        if not math.isclose(step[0].reduced.density, achieved, rel_tol=1e-6):
            raise Broken(
                f"the reported density is {step[0].reduced.density:.6g}; the achieved one is {achieved:.6g}"
            )


def ledger_equals_bytes_by_hand(case: Case) -> None:
    """The ledger's payload by kind is what `Reducer.payload` computes from the format in the docstring."""
    reducer = case.fresh().reducer
    for step in zip(*case.usual_steps, strict=True):
        counts = [s.mean_N.numel() if s.reduced.sent is None else s.reduced.sent.numel() for s in step]
        for rank, s in enumerate(step):
            expected = reducer.payload(counts, rank)
            if expected is None:
                case.skip("payload() states no bytes to compare the ledger with")
            elif _nonzero(expected) != _nonzero(s.payload):
                raise Broken(
                    f"rank {rank}: the ledger has {_nonzero(s.payload)}, payload() {_nonzero(expected)}"
                )


def one_rank_sends_nothing(case: Case) -> None:
    """With one rank the mean is what was sent, and no byte is sent or received."""

    def work(wire: Wire) -> tuple[Step, int]:
        feedback = case.fresh()
        step = reduce_once(feedback, case.gradient(0, 0), wire)
        return step, wire.ledger.sent + wire.ledger.received

    ((step, crossed),) = case.run(1, work)
    if crossed:
        raise Broken(f"one rank alone sent and received {crossed} bytes; expected 0")
    conserved(case, [[step]])


def negative_values_are_sent(case: Case) -> None:
    """A gradient that is negative everywhere reaches the mean (thresholds compare with |x|, not x)."""
    by_rank = steps(case, lambda rank, step: -case.gradient(rank, step).abs() - 1)
    if not any(step.mean_N.min() < 0 for step in by_rank[0]):
        raise Broken("a gradient that is negative everywhere does not reach the mean")


def nan_reaches_every_mean(case: Case) -> None:
    """NaN and ∞ on one rank are treated as a large number: they reach every mean and leave the residual."""
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
        case.skip("elements are selected independently of their magnitude; the spike was not selected")
        return
    for spike in (math.nan, math.inf):
        for rank, (_, during, after) in enumerate(with_spike(spike)):
            if bool(during.mean_N.isfinite().all()):
                raise Broken(f"the mean of rank {rank} does not show the {spike} of rank {culprit}")
            if during.left_N is not None and not bool(during.left_N.isfinite().all()):
                raise Broken(f"the residual of rank {rank} still contains the {spike}")
            if not bool(after.mean_N.isfinite().all()):
                raise Broken(f"the mean of rank {rank} is not finite one step after a {spike}")


def resumed_equals_uninterrupted(case: Case) -> None:
    """A new reducer that loads state_dict continues bitwise identically to an uninterrupted one."""
    # Epochs at which a reducer may change its levels: round numbers, a drop of the learning rate.
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
        raise Broken("after saving and loading, the means or the state differ from the uninterrupted ones")


def global_random_state_is_unchanged(case: Case) -> None:
    """Reducing neither draws from nor reseeds the global generators of torch, numpy and Python."""

    def work(wire: Wire) -> bool:
        torch.rand(())  # a state that reseeding cannot produce
        before = _random_state()
        feedback = case.fresh()
        feedback.reducer.begin_epoch(0, 0.1, wire)
        feedback(case.gradient(wire.rank, 0), wire)
        return _random_state() == before

    if not all(case.run(case.world_size, work)):
        raise Broken("a global random state has changed")


INVARIANTS: tuple[Callable[[Case], None], ...] = (
    ranks_agree,
    nothing_is_lost,
    uneven_ranks_lose_nothing,
    far_elements_keep_their_indices,
    every_grouping_keeps_the_invariants,
    edge_cases_are_handled,
    density_one_is_all_reduce,
    density_is_the_share_sent,
    ledger_equals_bytes_by_hand,
    one_rank_sends_nothing,
    negative_values_are_sent,
    nan_reaches_every_mean,
    resumed_equals_uninterrupted,
    global_random_state_is_unchanged,
)


IN_PART = frozenset(
    {
        uneven_ranks_lose_nothing,
        far_elements_keep_their_indices,
        every_grouping_keeps_the_invariants,
        edge_cases_are_handled,
        one_rank_sends_nothing,
    }
)
"""Invariants of which something, such as agreement, is checked even if they record a reason not to."""


def main(name: str, options: Mapping[str, Any], world_sizes: Sequence[int]) -> int:
    """Check one reducer against every invariant and print the verdicts (`sage.testing.verdicts`).

    Args:
        name: The reducer's command-line name.
        options: Options of the reducer.
        world_sizes: World sizes to check, each 1 or more.

    Returns:
        The exit status: 0 if no invariant is broken, else 1.

    Raises:
        ValueError: if an option or a world size is out of range.
    """
    if not world_sizes or min(world_sizes) < 1:
        raise ValueError(f"world_sizes is {list(world_sizes)}; allowed are world sizes of 1 or more")
    make = registry.load("reducers", name)
    make(**options)  # raise for a wrong option before any invariant is checked
    torch.set_num_threads(1)  # torch's threads slow down operations on such short vectors
    found = [
        verdict(invariant, make, options, world_size, in_part=invariant in IN_PART)
        for invariant in INVARIANTS
        for world_size in world_sizes
    ]
    show(name, found)
    return 1 if any(verdict.broken for verdict in found) else 0


def _random_state() -> tuple[object, ...]:
    _, key, position, *_ = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.asarray(key).tobytes(), position


def _nonzero(payload: Mapping[str, int]) -> dict[str, int]:
    return {kind: size for kind, size in sorted(payload.items()) if size}
