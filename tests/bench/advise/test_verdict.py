"""The verdict of `sage advise` follows from the paired times of the rounds."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.bench.advise.judge import judge
from sage.bench.advise.setups import Setup, flags
from sage.bench.advise.trials import Trial
from sage.bench.advise.verdict import Verdict
from sage.config import load, resolve
from sage.predict.closed_forms import Intervals
from sage.predict.step_time import Mount

ROUNDS = 8


def setup(reducer: str, mount: Mount = "ddp") -> Setup:
    config = replace(resolve(load("digits-ff", overrides={"reducer": reducer})), mount=mount)
    return Setup(
        config,
        is_dense=reducer in ("exact", "bf16"),
        predicted_seconds=0.1,
        name=flags(config),
    )


def trial(seconds: float, *, spread: float = 0.01, seed: int = 0) -> Trial:
    draw = random.Random(seed)
    return Trial(5, tuple(seconds * (1 + draw.uniform(-spread, spread)) for _ in range(ROUNDS)))


def verdict(
    named: Sequence[tuple[Setup, Trial]], break_even: Sequence[tuple[str, Intervals]] = ()
) -> Verdict:
    return judge(
        [each for each, _ in named],
        [each for _, each in named],
        workload="digits-ff",
        command="sage run digits-ff",
        ranks=2,
        nodes=1,
        break_even=break_even,
    )


DENSE = [(setup("exact"), trial(0.1, seed=1)), (setup("bf16"), trial(0.08, seed=2))]


def test_the_fastest_set_up_whose_interval_lies_above_one_is_recommended() -> None:
    found = verdict(
        [*DENSE, (setup("topk", "whole"), trial(0.05, seed=3)), (setup("onebit"), trial(0.06, seed=4))]
    )
    assert found.word == "pays"
    assert found.recommended.name.startswith("--reducer topk ")
    assert found.recommended.name.endswith(" --mount whole")
    assert found.recommended.speedup == pytest.approx(1.6, rel=0.05)
    assert found.recommended.speedup_low < found.recommended.speedup < found.recommended.speedup_high
    assert [each.seconds for each in found.measured] == sorted(each.seconds for each in found.measured)


def test_the_reference_is_the_faster_of_the_dense_set_ups() -> None:
    assert verdict([*DENSE, (setup("topk"), trial(0.05))]).reference.name == "--reducer bf16 --mount ddp"
    slow = [(setup("exact"), trial(0.07)), (setup("bf16"), trial(0.08))]
    assert verdict([*slow, (setup("topk"), trial(0.05))]).reference.name == "--reducer exact --mount ddp"


def test_a_method_that_is_faster_only_within_its_spread_does_not_pay() -> None:
    noisy = Trial(5, (0.04, 0.13, 0.05, 0.12, 0.06, 0.09, 0.04, 0.1))
    found = verdict([*DENSE, (setup("topk"), noisy)], [("--reducer topk", ((0.0, 1e9),))])
    assert found.word == "nothing pays"
    assert found.recommended == found.reference
    assert (found.pays_below, found.pays_with) == (1e9, "--reducer topk")


def test_where_nothing_pays_the_text_names_the_bandwidth_at_which_that_changes() -> None:
    slow = [*DENSE, (setup("topk"), trial(0.2))]
    shown = str(verdict(slow, [("--reducer topk --mount ddp", ((0.0, 2.4e8),))]))
    assert "nothing pays" in shown
    assert "sage run digits-ff --reducer bf16 --mount ddp" in shown
    assert "less than 240 Mbit/s" in shown
    every = str(verdict(slow, [("--reducer topk --mount ddp", ((0.0, math.inf),))]))
    assert "the measurement does not confirm it" in every
    assert "at any bandwidth" in str(verdict(slow, [("--reducer topk --mount ddp", ())]))


def test_if_every_compressing_set_up_has_failed_the_text_says_so() -> None:
    text = str(verdict(DENSE))
    assert "No compressing set-up could be measured." in text
    assert "prediction" not in text


@given(st.floats(0.2, 5.0), st.integers(0, 1000))
def test_times_in_another_unit_give_the_same_verdict(factor: float, seed: int) -> None:
    named = [*DENSE, (setup("topk"), trial(0.078, spread=0.1, seed=seed))]
    scaled = [(each, Trial(t.steps, tuple(factor * s for s in t.seconds))) for each, t in named]
    ours, theirs = verdict(named), verdict(scaled)
    assert ours.word == theirs.word
    assert ours.recommended.name == theirs.recommended.name
    assert ours.recommended.speedup == pytest.approx(theirs.recommended.speedup)
