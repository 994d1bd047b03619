"""The formats of shards: errors within a block's bound, bytes, and what is not finite."""
# W = rows, S = elements of a row

import pytest
import torch
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vectors import KINDS

from sage import ops
from sage.reduction.shard_formats import SCALES, VALUES, Bfloat16, Blocks, Format, Int4, RandomLevels

BLOCK = 32
FORMATS: dict[str, Format] = {
    "bf16": Bfloat16(),
    "fp8": Blocks(ops.Codec.E4M3, BLOCK),
    "int8": Blocks(ops.Codec.INT8, BLOCK),
    "int4": Int4(BLOCK),
    "random int8": RandomLevels(127, BLOCK, 0),
    "random int4": RandomLevels(7, BLOCK, 0),
}
STEPS = {"int8": 2 * 127, "int4": 2 * 7, "random int8": 127, "random int4": 7}
"""A block's scale divided by these numbers bounds the error of an element."""

ROUNDED, DENORMAL = 1 + 1e-5, 1e-42
"""Beside the bound, float32 rounds a few times, a denormal level by 2⁻¹⁵⁰ for each of 127."""


def scales(x_WS: Tensor) -> Tensor:
    """The largest magnitude of each element's block (W × S)."""
    blocks = [part.abs().amax(1, keepdim=True).expand_as(part) for part in x_WS.split(BLOCK, dim=1)]
    return torch.cat(blocks, dim=1)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=examples(15))
@given(num=st.integers(1, 4), length=st.integers(1, 50), kind=st.integers(0, 6), seed=st.integers(0, 99))
def test_an_element_is_off_by_half_a_level_of_its_block_at_most(
    name: str, num: int, length: int, kind: int, seed: int
) -> None:
    torch.manual_seed(seed)
    length = 2 * length if name.startswith("random") else length
    x_WS = KINDS[kind](num * length).float().view(num, length)
    decoded_WS = FORMATS[name].decode(FORMATS[name].encode(x_WS, 1, 0), length)
    error_WS = (decoded_WS - x_WS).abs()
    if name in STEPS:
        bound_WS = scales(x_WS) / STEPS[name] * ROUNDED + DENORMAL
    elif name == "bf16":
        bound_WS = x_WS.abs() * 2.0**-8 + 2.0**-133
    else:  # 4 bits of precision down to 2⁻⁶, of which the scale is 448
        bound_WS = torch.maximum(x_WS.abs() / 16, scales(x_WS) * 2.0**-10 / 448) * ROUNDED + DENORMAL
    assert bool((error_WS <= bound_WS).all())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 70])
def test_a_row_takes_the_bytes_that_the_format_states(name: str, length: int) -> None:
    if name == "random int4" and length % 2:
        return
    rows = FORMATS[name].encode(torch.randn(3, length), 1, 0)
    sizes = {kind: part_W[0].numel() * part_W.element_size() for kind, part_W in rows.items()}
    assert sizes == FORMATS[name].num_bytes(length)
    blocks = -(-length // BLOCK)
    by_hand = {"bf16": {VALUES: 2 * length}, "int4": {VALUES: -(-length // 2), SCALES: 4 * blocks}}
    assert sizes == by_hand.get(name.removeprefix("random "), {VALUES: length, SCALES: 4 * blocks})


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_added_in_float32_in_their_order(name: str) -> None:
    form, length = FORMATS[name], 66
    torch.manual_seed(0)
    rows = form.encode(torch.randn(3, length), 1, 0)
    first_S, second_S, third_S = form.decode(rows, length)
    mean_S = form.total(rows, torch.empty(length), 3)
    assert torch.equal(mean_S, (first_S + second_S + third_S) / torch.tensor(3.0))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_block(name: str, bad: float) -> None:
    x_WS = torch.ones(2, 96)
    x_WS[1, 40] = bad
    decoded_WS = FORMATS[name].decode(FORMATS[name].encode(x_WS, 1, 0), 96)
    is_off_WS = ~decoded_WS.isfinite()
    assert bool(is_off_WS[1, 40])
    if name != "bf16":
        assert bool(is_off_WS[1, 32:64].all())
    is_off_WS[1, 32:64] = False
    assert not is_off_WS.any()


def test_random_rounding_is_unbiased_and_depends_on_step_and_rank() -> None:
    x_WS = torch.full((1, 20_000), 0.3)
    x_WS[0, ::BLOCK] = 7.0  # 0.3 of a level
    form = RandomLevels(7, BLOCK, 0)
    first, again, other_step, other_rank = (
        form.decode(form.encode(x_WS, step, rank), 20_000) for step, rank in ((1, 0), (1, 0), (2, 0), (1, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other_step)
    assert not torch.equal(first, other_rank)
    rounded = first[0, x_WS[0] < 1]
    assert set(rounded.tolist()) == {0.0, 1.0}
    assert float(rounded.mean()) == pytest.approx(0.3, abs=0.02)  # 6 standard deviations
