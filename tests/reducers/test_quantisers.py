"""Tests of the quantisers: payload format, levels, mean over many draws, and options."""
# N = elements of the vector, G = groups, D = draws, W = ranks

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sage import ops, registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.dithering import Dithering
from sage.reducers.efsignsgd import EfSignSgd
from sage.reducers.int8 import Int8
from sage.reducers.natural import Natural
from sage.reducers.onebit import OneBit
from sage.reducers.onebit_sgd import OneBitSgd
from sage.reducers.qsgd import Qsgd
from sage.reducers.sign_norm import SignNorm
from sage.reducers.signsgd import SignSgd
from sage.reducers.signum import Signum
from sage.reducers.terngrad import TernGrad
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.reduction.quantise import Parts, Quantiser
from sage.reduction.reducer import Reduced
from sage.reduction.two_way import cut
from sage.testing import conformance
from sage.testing.harness import Broken, Case, steps

N = 1023
"""Elements of the toy model: conv 216, wide 800, bias 7."""

QUANTISERS: list[tuple[str, dict[str, Any]]] = [
    ("efsignsgd", {}),
    ("sign_norm", {}),
    ("onebit", {}),
    ("onebit", {"scaling": False}),
    ("onebit_sgd", {}),
    ("qsgd", {}),
    ("dithering", {}),
    ("dithering", {"partition": "natural", "levels": 4, "norm": "max", "coding": "packed"}),
    ("natural", {}),
    ("natural", {"bits": 8}),
    ("terngrad", {}),
    ("terngrad", {"clip": None, "share": False}),
    ("int8", {}),
    ("fp8", {}),
    ("fp8", {"format": "e5m2"}),
    ("fp4", {}),
    ("mxfp8", {}),
    ("mxfp8", {"format": "e5m2"}),
    ("mxfp4", {}),
    ("nvfp4", {}),
]


def quantiser(name: str, options: Mapping[str, Any]) -> Quantiser:
    return cast(Quantiser, registry.load("reducers", name)(**options))


def encoded(method: Quantiser, x_N: Tensor, sizes: Sequence[int]) -> Parts:
    return simulate(1, lambda wire: method.encode(x_N, sizes, wire))[0]


def sent(method: Quantiser, x_N: Tensor, sizes: Sequence[int]) -> Tensor:
    """The decoded value of a coded vector."""
    return method.decode(encoded(method, x_N, sizes), sizes)


def listed(parts: Parts) -> dict[str, list[float]]:
    return {kind: part.tolist() for kind, part in parts.items()}


def means(make: Callable[[], Any], signals: Sequence[Tensor], memory: Any = "none") -> list[Tensor]:
    """The mean on each of W ranks for a gradient of one group."""

    def work(wire: Wire) -> Tensor:
        signal_N = signals[wire.rank].clone()
        feedback = ErrorFeedback(make(), Layout.of([("w", signal_N.shape)]), memory=memory)
        return feedback(signal_N, wire).mean_N

    return simulate(len(signals), work)


# Payload formats, for values that are coded without randomness.


def test_onebit_has_words_of_32_signs_with_the_first_one_highest_and_a_scale_per_group() -> None:
    x_N = torch.ones(35)
    x_N[[0, 31, 32, 34]] = -3.0
    parts = listed(encoded(OneBit(), x_N, [33, 2]))
    assert parts["values"] == [-(2**31) + 1, -(2**31), 2**30]  # a negative word is one whose first bit is 1
    assert parts["scales"] == pytest.approx([(30 + 9) / 33, 2.0])
    assert listed(encoded(OneBit(scaling=False), x_N, [33, 2]))["scales"] == [1.0, 1.0]


def test_sign_norm_reads_32_rows_by_column() -> None:
    x_N = torch.arange(40.0)
    x_N[[0, 3, 5]] = -1.0
    # Two words: element r·2 + j is bit 31 − r of word j, so 0 is (0, 0), 3 is (1, 1), 5 is (2, 1).
    assert listed(encoded(SignNorm(), x_N, [40])) == {
        "values": [-(2**31), 2**30 + 2**29],
        "scales": [3.0 + sum(range(40)) - 8],
    }


def test_efsignsgd_and_sign_norm_give_the_same_mean_by_different_payloads() -> None:
    x_N = torch.randn(N, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sent(SignNorm(), x_N, [1000, 23]), sent(EfSignSgd(), x_N, [1000, 23]))


def test_onebit_sgd_sends_the_two_means() -> None:
    x_N = torch.tensor([1.0, -2.0, 3.0, -4.0, 0.0, 5.0])
    parts = encoded(OneBitSgd(), x_N, [5, 1])
    assert listed(parts) == {"values": [0b110101], "scales": pytest.approx([-3.0, 0.0, 4 / 3, 5.0])}
    expected = [4 / 3, -3.0, 4 / 3, -3.0, 4 / 3, 5.0]
    assert OneBitSgd().decode(parts, [5, 1]).tolist() == pytest.approx(expected)


def test_dithering_packs_level_plus_s_in_the_fewest_bits_that_hold_two_s() -> None:
    linear = Dithering(levels=2, norm="max", coding="packed")
    assert linear.coding.bits == 3
    x_N = torch.tensor([8.0, -4.0, 0.0])  # 4, 1 and 2
    assert listed(encoded(linear, x_N, [3])) == {"values": [0b10_001_100, 0], "scales": [8.0]}
    natural = Dithering(levels=3, partition="natural", norm="max", coding="packed")
    x_N = torch.tensor([8.0, -4.0, 2.0, 0.0])  # 6, 1, 4 and 3, in three bits
    assert listed(encoded(natural, x_N, [4])) == {"values": [0b00_001_110, 0b011_1], "scales": [8.0]}
    assert sent(natural, x_N, [4]).tolist() == [8.0, -4.0, 2.0, 0.0]
    assert [Qsgd(levels=s).coding.bits for s in (1, 2, 3, 4, 7, 8, 127)] == [2, 3, 3, 4, 4, 5, 8]


def test_dithering_has_byteps_stream_of_nonzero_levels() -> None:
    method = Dithering(levels=2, norm="max")
    x_N = torch.tensor([0.0, 8.0, -4.0, 0.0, 0.0, 8.0])
    stream = "0100" + "0" + "0100" + "1" + "1" + "1" + "0101" + "0" + "0100"
    assert listed(encoded(method, x_N, [6])) == {
        "values": [int(stream.ljust(32, "0"), 2)],
        "sizes": [21],
        "scales": [8.0],
    }
    assert sent(method, x_N, [6]).tolist() == x_N.tolist()
    # A natural level is coded as 2^(s−1) times what it is worth: here 4, in five bits.
    natural = Dithering(levels=3, partition="natural", norm="max")
    parts = encoded(natural, torch.tensor([-8.0]), [1])
    assert listed(parts)["values"] == [int(("1" + "1" + "01100").ljust(32, "0"), 2) - 2**32]


def test_natural_sends_the_exponent_and_the_sign_of_a_float() -> None:
    x_N = torch.tensor([1.0, -2.0, 0.5, 0.0, 2.0**127, -math.inf])
    parts = encoded(Natural(), x_N, [6])
    assert parts["values"].tolist() == [127, 128, 126, 0, 254, 255, 0b011101]
    assert Natural().decode(parts, [6]).tolist() == x_N.tolist()
    x_N = torch.tensor([1.0, -2.0, 0.5, 0.0])
    parts = encoded(Natural(bits=8), x_N, [4])
    assert listed(parts) == {"values": [125, 128 + 126, 124, 0], "scales": [2.0]}
    assert Natural(bits=8).decode(parts, [4]).tolist() == x_N.tolist()


def test_no_finite_number_becomes_infinite() -> None:
    largest = torch.finfo(torch.float32).max
    assert sent(Natural(), torch.full((1000,), -largest), [1000]).tolist() == 1000 * [-(2.0**127)]


def test_terngrad_packs_four_to_a_byte() -> None:
    x_N = torch.tensor([3.0, -3.0, 0.0, 3.0, -3.0])
    parts = encoded(TernGrad(clip=None), x_N, [5])
    assert listed(parts) == {"values": [2 | 0 << 2 | 1 << 4 | 2 << 6, 0], "scales": [3.0]}
    assert TernGrad().decode(parts, [5]).tolist() == x_N.tolist()


def test_int8_and_fp8_scale_every_block_to_their_range() -> None:
    x_N = torch.tensor([254.0, -128.4, 0.0, 5.0, -2.5])
    parts = encoded(Int8(block=3), x_N, [5])
    assert listed(parts) == {"values": [127, 256 - 64, 0, 127, 256 - 64], "scales": [254.0, 5.0]}
    parts = encoded(quantiser("fp8", {}), torch.tensor([2.0, -1.0, 0.0]), [3])
    assert listed(parts) == {"values": [0x7E, 0xF6, 0], "scales": [2.0]}  # 448 and −224


def test_fp4_has_the_15_values_of_a_sign_and_3_exponent_bits() -> None:
    powers = [2.0**-e for e in range(7)]  # 1 to 1/64
    x_N = torch.tensor([*powers, 0.0, *(-p for p in reversed(powers))])
    parts = encoded(quantiser("fp4", {}), 3 * x_N, [15])
    assert ops.unpack(parts["values"], 4, 15).tolist() == [14 - code for code in range(15)]
    assert parts["scales"].tolist() == [3.0]
    assert sent(quantiser("fp4", {}), 3 * x_N, [15]).tolist() == (3 * x_N).tolist()
    # Whatever is between two values becomes one of them, and 0 is below 1/64.
    seen_N = sent(quantiser("fp4", {"block": 3}), torch.tensor([1.0, 0.7, 0.001] * 500), [1500]).view(-1, 3)
    assert [sorted(set(column.tolist())) for column in seen_N.T] == [[1.0], [0.5, 1.0], [0.0, 2.0**-6]]


# Levels.


def test_natural_levels_are_those_of_byteps_formula() -> None:
    """q = lo + len·Bernoulli((y − lo)/len), lo = ⌊nextpow2(⌈y⌉)/2⌋, len = max(lo, 1), at the same draws."""
    s, n, key = 6, 2000, 3
    coding = ops.Coding(ops.Codec.NATURAL, s)
    uniform_N = (ops.random_bits(n, key) + 0.5) / 2**16
    ratio_N = torch.rand(n, generator=torch.Generator().manual_seed(2)) ** 4
    ratio_N[:7] = torch.tensor([0.0, 1.0, 0.5, 0.25, 2.0**-5, 2.0**-6, 1e-30])
    codes_B, scale_P = ops.quantise(ratio_N, None, [n], coding, key=key)
    seen_N = ops.average(torch.empty(n), codes_B[None], scale_P[None], [n], coding, divisor=1)
    seen = (seen_N * 2 ** (s - 1)).tolist()
    for y, u, q in zip((ratio_N * 2 ** (s - 1)).tolist(), uniform_N.tolist(), seen, strict=True):
        low = (1 << (math.ceil(y) - 1).bit_length()) // 2 if y else 0
        length = max(low, 1)
        drawn = u < (y - low) / length if y < 1 else u > 1 - (y - low) / length
        assert q == low + length * drawn


@pytest.mark.parametrize("coding", [ops.Coding(ops.Codec.LINEAR, 127), ops.Coding(ops.Codec.NATURAL, 7)])
def test_levels_never_exceed_the_highest(coding: ops.Coding) -> None:
    above_N = torch.tensor([1.0, 1 + 2**-20]).repeat(500)  # more than the scale, as after a rounded division
    one_1 = torch.ones(1)
    codes_B = ops.quantise_to(above_N, [1000], coding, one_1, key=1, keep=False)
    mean_N = ops.average(torch.empty(1000), codes_B[None], one_1[None], [1000], coding, divisor=1)
    assert mean_N.tolist() == [1.0] * 1000


UNBIASED: list[tuple[str, dict[str, Any]]] = [
    ("terngrad", {"clip": None}),
    ("terngrad", {"clip": None, "share": False}),
    ("qsgd", {}),
    ("qsgd", {"norm": "max", "levels": 1, "bucket": 7}),
    ("dithering", {}),
    ("dithering", {"norm": "max", "levels": 5, "coding": "packed"}),
    ("dithering", {"partition": "natural", "levels": 3, "norm": "max"}),
    ("dithering", {"partition": "natural", "levels": 4, "coding": "packed"}),
    ("natural", {}),
    ("natural", {"bits": 8}),
    ("fp4", {"block": 10}),
]


@pytest.mark.parametrize(("name", "options"), UNBIASED)
def test_unbiased_quantisers_are_unbiased(name: str, options: dict[str, Any]) -> None:
    """The mean over 2,000 draws lies within four standard errors, for each of 25 numbers."""
    num_draws, n = 2000, 25
    x_N = torch.rand(n, generator=torch.Generator().manual_seed(3)) * 0.95 + 0.05
    x_N[::2] *= -1
    x_N[-1] = 0
    drawn_N = sent(quantiser(name, options), x_N.repeat(num_draws), [n] * num_draws)
    drawn_DN = drawn_N.view(num_draws, n).double()
    assert float(drawn_DN.std(0).max()) > 0
    error_N = drawn_DN.std(0) / math.sqrt(num_draws)
    off_N = (drawn_DN.mean(0) - x_N.double()).abs()
    rare_N = x_N.abs().max() / num_draws  # the change by one event that none of the draws has
    assert bool((off_N <= 4 * error_N + rare_N).all())


def test_denormals_are_quantised_without_bias_down_to_zero() -> None:
    """Below the least exponent the value is 0, because 8 bits of exponent cannot express it."""
    x = 2.0**-128
    drawn_N = sent(Natural(), torch.full((20_000,), x), [20_000])
    assert set(drawn_N.tolist()) == {0.0, 2.0**-126}
    assert float((drawn_N / x).mean()) == pytest.approx(1, abs=4 * math.sqrt(3 / 20_000))


def test_draws_depend_only_on_the_step_and_the_rank() -> None:
    x_N = torch.rand(N, generator=torch.Generator().manual_seed(4))

    def work(wire: Wire) -> list[Tensor]:
        method = TernGrad(clip=None, rounding_seed=5)
        return [method.encode(x_N, [N], wire)["values"] for _ in range(2)]

    first, again = simulate(2, work), simulate(2, work)
    draws = [values for rank in first for values in rank]
    assert all(torch.equal(a, b) for a, b in zip(draws, [v for rank in again for v in rank], strict=True))
    assert len({bytes(values.tolist()) for values in draws}) == 4


# Extreme values.


@pytest.mark.parametrize(("name", "options"), QUANTISERS)
def test_zeros_and_empty_groups_give_zeros(name: str, options: dict[str, Any]) -> None:
    method = quantiser(name, options)
    for sizes in ([], [0], [0, 5, 0], [3, 0, 40]):
        worth_N = sent(method, torch.zeros(sum(sizes)), sizes)
        expected = 1.0 if options == {"scaling": False} else 0.0
        assert worth_N.tolist() == sum(sizes) * [expected]


@pytest.mark.parametrize(("name", "options"), QUANTISERS)
@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_elements_that_are_not_finite_affect_only_their_own_group(
    name: str, options: dict[str, Any], fault: float
) -> None:
    x_N = torch.ones(80)
    x_N[60] = fault
    worth_N = sent(quantiser(name, options), x_N, [40, 40])
    assert bool(worth_N[:40].isfinite().all())
    assert not bool(worth_N[40:].isfinite().all())


VANISHING: list[tuple[str, dict[str, Any], float]] = [("natural", {}, 1e-41), ("mxfp4", {}, 1e-41)]


@pytest.mark.parametrize(("name", "options"), QUANTISERS)
@pytest.mark.parametrize("size", [1e-41, 1e-20, 1e30])
def test_no_square_or_product_overflows_or_vanishes(name: str, options: dict[str, Any], size: float) -> None:
    """Values of one magnitude are sent as it, although the sum of their squares exceeds float32."""
    if options == {"scaling": False} or (name, options, size) in VANISHING:
        return  # the one has no sizes; to the others this is 0, or 2^-126
    worth_N = sent(quantiser(name, options), torch.full((64,), size), [64])
    assert 0 < float(worth_N.mean()) <= 2 * size
    assert float(worth_N.max()) >= 0.9 * size


# The mean over ranks.


@pytest.mark.parametrize(
    ("name", "options"),
    [each for each in QUANTISERS if each[1] not in ({"scaling": False}, {"clip": None, "share": False})]
    + [("onebit", {"exchange": "ps"})],
)
def test_ranks_with_equal_gradients_of_one_magnitude_get_their_exact_mean(
    name: str, options: dict[str, Any]
) -> None:
    """A single magnitude is a level itself."""
    options = options | ({"norm": "max"} if name in ("qsgd", "dithering") else {})
    for mean_N in means(lambda: quantiser(name, options), [torch.tensor([4.0, -4.0])] * 3):
        assert mean_N.tolist() == pytest.approx([4.0, -4.0])


# Votes.


def test_the_majority_of_signs_is_taken_and_a_tie_is_zero() -> None:
    votes = [torch.tensor(x) for x in ([5.0, -1.0, -0.1, 0.0], [-1.0, -2.0, 3.0, -1.0])]
    assert [mean_N.tolist() for mean_N in means(SignSgd, votes)] == 2 * [[0.0, -1.0, 0.0, 0.0]]
    votes.append(torch.tensor([1e-9, 7.0, 1.0, -1e-9]))
    assert [mean_N.tolist() for mean_N in means(SignSgd, votes)] == 3 * [[1.0, -1.0, 1.0, -1.0]]


def test_signum_votes_with_its_momentum() -> None:
    def work(wire: Wire) -> list[list[float]]:
        feedback = ErrorFeedback(Signum(sign_momentum=0.5), Layout.of([("w", (2,))]))
        grads = [torch.tensor([4.0, 1.0]), torch.tensor([-1.0, -2.0])]
        # m is 2, 0.5, and then 1 − 0.5, 0.25 − 1.
        return [feedback(grad_N, wire).mean_N.tolist() for grad_N in grads]

    assert simulate(1, work) == [[[1.0, 1.0], [1.0, -1.0]]]


@pytest.mark.parametrize("make", [SignSgd, Signum])
@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_an_element_that_is_not_finite_makes_one_mean_not_finite_and_leaves_no_state(
    make: type[SignSgd], fault: float
) -> None:
    """A sign would hide it, and a momentum would keep it and vote +1 at every later step."""

    def work(wire: Wire) -> list[Tensor]:
        feedback = ErrorFeedback(make(), Layout.of([("w", (2,))]))
        spike = [-1.0, fault if wire.rank > 0 else -1.0]
        return [feedback(torch.tensor(g), wire).mean_N for g in ([-1.0, -1.0], spike, [-1.0, -1.0])]

    for before_N, during_N, after_N in simulate(3, work):
        assert not bool(during_N.isfinite().any())
        assert before_N.tolist() == after_N.tolist() == [-1.0, -1.0]


def test_a_vote_with_memory_keeps_the_difference_to_its_sign() -> None:
    feedback = ErrorFeedback(SignSgd(), Layout.of([("w", (2,))]), memory="residual")
    simulate(1, lambda wire: feedback(torch.tensor([3.0, -0.25]), wire))
    assert feedback.residual_N is not None
    assert feedback.residual_N.tolist() == [2.0, 0.75]


def test_with_a_shared_scale_sums_are_integer_multiples_of_it() -> None:
    signals = [torch.rand(100, generator=torch.Generator().manual_seed(r)) * 4.0**r for r in range(3)]
    largest = float(signals[2].max())
    sums = means(lambda: TernGrad(clip=None, share=True), signals)[0] * 3 / largest
    torch.testing.assert_close(sums, sums.round())
    sums = means(lambda: TernGrad(clip=None, share=False), signals)[0] * 3 / largest
    assert not torch.allclose(sums, sums.round())


def test_terngrad_clips_at_the_given_number_of_standard_deviations() -> None:
    x_N = torch.tensor([10.0] + 99 * [1.0])
    parts = encoded(TernGrad(clip=2.0), x_N, [100])
    assert listed(parts)["scales"] == pytest.approx([2 * math.sqrt(1.99)])
    assert listed(encoded(TernGrad(clip=2.5), torch.full((9,), -0.3), [9]))["scales"] == pytest.approx([0.3])


# Two-way coding.


def test_shares_split_groups_at_the_boundaries_of_ranks() -> None:
    assert cut([3, 2, 5], 3) == [[3, 1], [1, 3], [2]]
    assert cut([4], 1) == [[4]]
    assert cut([1, 0, 1], 4) == [[1], [1], [], []]
    assert cut([], 2) == [[], []]


def test_with_one_worker_the_mean_is_the_code_of_the_code() -> None:
    """BytePS's own test: coded at push and at pull, one worker's gradient becomes C(C(g))."""
    x_N = torch.randn(1000, generator=torch.Generator().manual_seed(6))
    twice_N = x_N
    for _ in range(2):
        twice_N = torch.where(twice_N < 0, -1.0, 1.0) * twice_N.abs().double().mean().float()
    (mean_N,) = means(lambda: OneBit(exchange="ps"), [x_N])
    torch.testing.assert_close(mean_N, twice_N, rtol=torch.finfo(torch.float32).eps, atol=0)


def test_a_server_codes_the_mean_of_the_received_codes() -> None:
    """Each of two ranks serves one half; its own contribution is not coded."""
    a_N, b_N = torch.tensor([1.0, -3.0, 2.0, 2.0]), torch.tensor([4.0, 0.0, -1.0, 5.0])
    first_N = (a_N[:2] + 2.0) / 2  # b's first half is 2, 2 in codes
    second_N = (b_N[2:] + 2.0) / 2
    expected = [first_N.abs().mean() * s for s in (1, -1)] + [second_N.abs().mean() * s for s in (1, 1)]
    for mean_N in means(lambda: OneBit(exchange="ps"), [a_N, b_N]):
        assert mean_N.tolist() == pytest.approx([float(x) for x in expected])


def test_only_dist_ef_is_the_sgd_of_zheng_et_al() -> None:
    signals = [torch.tensor([1.0, 3.0, 0.0, 0.0]), torch.tensor([-4.0, 0.5, 0.0, 0.0])]
    # Codes (2, 2) and (−2.25, 2.25): mean (−0.125, 2.125). With rank 0 uncoded: (−0.625, 2.625).
    served = {1.125: lambda: OneBit(exchange="dist-ef"), 1.625: lambda: OneBit(exchange="ps")}
    for scale, make in served.items():
        for mean_N in means(make, signals):
            assert mean_N.tolist() == pytest.approx([-scale, scale, 0.0, 0.0])


def zheng(gradients_TWN: Tensor) -> list[Tensor]:
    """Algorithm 2 at a constant learning rate: workers, and a server for each Wth, keep their own errors."""
    size = gradients_TWN.shape[2] // gradients_TWN.shape[1]

    def code(x_N: Tensor) -> Tensor:
        blocks = x_N.view(-1, size)
        return (torch.where(blocks < 0, -1.0, 1.0) * blocks.abs().mean(1, keepdim=True)).view(-1)

    error_WN, server_N = torch.zeros_like(gradients_TWN[0]), torch.zeros_like(gradients_TWN[0, 0])
    found = []
    for gradient_WN in gradients_TWN:
        p_WN = gradient_WN + error_WN
        delta_WN = torch.stack([code(p_N) for p_N in p_WN])
        error_WN = p_WN - delta_WN
        server_N = delta_WN.mean(0) + server_N
        found.append(code(server_N))
        server_N = server_N - found[-1]
    return found


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_dist_ef_follows_algorithm_2_over_several_steps(world_size: int) -> None:
    dice = torch.Generator().manual_seed(3)
    gradients_TWN = torch.randn(6, world_size, 16, generator=dice, dtype=torch.float64)

    def work(wire: Wire) -> list[Tensor]:
        feedback = ErrorFeedback(OneBit(exchange="dist-ef"), Layout.of([("w", (16,))]), memory="residual")
        return [feedback(grad_WN[wire.rank].float(), wire).mean_N.clone() for grad_WN in gradients_TWN]

    for seen in simulate(world_size, work):
        for mean_N, expected_N in zip(seen, zheng(gradients_TWN), strict=True):
            torch.testing.assert_close(mean_N, expected_N.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "relative"), [("int8", 1 / 127), ("fp8", 1 / 8)])
def test_the_error_of_coding_twice_is_at_most_the_sum_of_both_step_sizes(name: str, relative: float) -> None:
    """Half a step each, of the largest of the block; a float's is half of its last bit's."""
    signals = [torch.randn(N, generator=torch.Generator().manual_seed(r)) for r in range(3)]
    expected_N = torch.stack(signals).mean(0)
    mean_N = means(registry.load("reducers", name), signals)[0]
    off = float((mean_N - expected_N).abs().max())
    assert 0 < off <= relative * max(float(signal_N.abs().max()) for signal_N in signals)


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("onebit", {"exchange": "ps"}),
    ("onebit", {"exchange": "ps", "scaling": False}),
    ("onebit", {"exchange": "dist-ef"}),
    ("dithering", {"partition": "natural", "levels": 5, "norm": "max", "bucket": 100}),
    ("qsgd", {"norm": "max", "levels": 127}),
    ("natural", {"bits": 8}),
    ("terngrad", {"clip": None, "share": False}),
    ("fp8", {"format": "e5m2", "block": 64}),
    ("topk+terngrad", {"density": 0.1}),
    ("gtopk+qsgd", {"density": 0.1}),
    ("threshold+natural", {"density": 0.1}),
    ("topk+onebit", {"density": 0.1}),
    ("topk+int8", {"density": 0.1}),
    ("deft+efsignsgd", {"density": 0.1}),
    ("micro+efsignsgd", {"density": 0.1}),
    ("gtopk+dithering", {"density": 0.1}),
]
"""Options that the shared tests, which use each reducer's defaults, do not cover."""


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_variants_and_hybrids_keep_the_invariants(name: str, options: dict[str, Any]) -> None:
    case = Case(registry.load("reducers", name), options, 3, memory="residual")
    for invariant in (
        conformance.uneven_ranks_lose_nothing,
        conformance.edge_cases_are_handled,
        conformance.ledger_equals_bytes_by_hand,
        conformance.nan_reaches_every_mean,
        conformance.resumed_equals_uninterrupted,
    ):
        invariant(case)


def left_after(name: str, options: dict[str, Any], num_steps: int) -> float:
    """‖mean residual‖ / ‖gradient‖ after the given number of equal gradients on each of three ranks."""
    grads = [torch.randn(200, generator=torch.Generator().manual_seed(rank)) for rank in range(3)]

    def work(wire: Wire) -> Tensor:
        layout = Layout.of([("w", (200,))])
        feedback = ErrorFeedback(quantiser(name, options), layout, memory="residual")
        for _ in range(num_steps):
            feedback(grads[wire.rank].clone(), wire)
        assert feedback.residual_N is not None
        return feedback.residual_N

    return float(torch.stack(simulate(3, work)).mean(0).norm() / torch.stack(grads).mean(0).norm())


@pytest.mark.parametrize(
    ("name", "options"),
    [each for each in QUANTISERS if each not in (("dithering", {}), ("onebit", {"scaling": False}))]
    + [("onebit", {"exchange": "ps"}), ("dithering", {"norm": "max"})],
)
def test_with_error_feedback_the_residual_is_at_most_a_few_gradients(
    name: str, options: dict[str, Any]
) -> None:
    """The sum of the means of T steps is T gradients minus a few. Codes of 8 bits leave less than one."""
    assert left_after(name, options, 60) < (0.2 if name in ("int8", "fp8") else 12)


def test_with_norm_l2_over_a_whole_layer_error_feedback_diverges_as_byteps_states() -> None:
    assert left_after("dithering", {}, 60) > 1000


# Bytes by hand. Groups are 216, 800 and 7 elements, for int8 and fp8 all 1,023.


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("efsignsgd", {}, {"values": 128, "scales": 12}),
        ("sign_norm", {}, {"values": 128, "scales": 12}),
        ("signsgd", {}, {"values": 128, "scales": 4}),
        ("signum", {}, {"values": 128, "scales": 4}),
        ("onebit_sgd", {}, {"values": 128, "scales": 24}),
        ("onebit", {}, {"values": 4 * (7 + 25 + 1), "scales": 12}),
        # Shares of 216 and 296, and of 504 and 7: the longest has 17 words, and goes to 2 ranks and to all.
        ("onebit", {"exchange": "ps"}, {"values": 3 * 4 * (7 + 10), "scales": 3 * 8}),
        # Four bits; two, seven and one bucket.
        ("qsgd", {}, {"values": 512, "scales": 40}),
        ("qsgd", {"levels": 8}, {"values": 640, "scales": 40}),
        ("dithering", {"coding": "packed"}, {"values": 384, "scales": 12}),
        ("natural", {}, {"values": 1023 + 128}),
        ("natural", {"bits": 8}, {"values": 1023, "scales": 12}),
        ("terngrad", {}, {"values": 256, "scales": 24}),
        ("terngrad", {"share": False}, {"values": 256, "scales": 12}),
        # Shares of 512 and 511, of two blocks each.
        ("int8", {}, {"values": 3 * 512, "scales": 3 * 8}),
        ("fp8", {"block": 100}, {"values": 3 * 512, "scales": 3 * 24}),
        # Shares of 512 and 511: 16 blocks of 32. For nvfp4: 14 and 19 blocks of two tensors, then 32 and 1.
        ("mxfp8", {}, {"values": 3 * 512, "scales": 3 * 16}),
        ("mxfp4", {}, {"values": 3 * 256, "scales": 3 * 16}),
        ("nvfp4", {}, {"values": 3 * 256, "scales": 3 * (33 + 8)}),
        # Ten parts; three bits for each of two shares of 512, and six bits for 512 sums of at most 32.
        ("thc", {}, {"values": 2 * 192 + 384, "scales": 40}),
        ("thc", {"exchange": "all-reduce"}, {"values": 1023, "scales": 40}),
        # Four bits and four blocks, gathered from all ranks.
        ("fp4", {}, {"values": 512, "scales": 4 * 4}),
    ],
)
def test_the_payload_bytes_equal_those_counted_by_hand(
    name: str, options: dict[str, Any], expected: dict[str, int]
) -> None:
    case = Case(registry.load("reducers", name), options, 2)
    for (step,) in steps(case, lambda rank, step: case.gradient(rank, step), count=1):
        assert step.payload == expected


def test_the_bytes_of_a_stream_are_those_of_its_nonzero_levels() -> None:
    def gradient(rank: int, step: int) -> Tensor:
        grad_N = torch.zeros(N)
        grad_N[0] = 1.0  # of conv: 1, 0, 0100
        grad_N[216 + 9] = -1.0  # of wide: 00100010, 1, 0100
        return grad_N

    for (step,) in steps(Case(Dithering, {}, 2), gradient, count=1):
        assert step.payload == {"values": 8, "sizes": 12 + 24, "scales": 12}


# Faults found in other systems.


class AddsItsError(EfSignSgd):
    """The residual is g + sent instead of g − sent."""

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        assert residual_N is not None
        signal_N = residual_N + grad_N
        reduced = super().forward(grad_N, residual_N, wire)
        residual_N.copy_(2 * signal_N - residual_N)
        return reduced


class DividesByZero(Qsgd):
    """Divides x by a norm that may be 0."""

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        parts = super().compress(grad_N, residual_N, sizes, wire)
        return {**parts, "scales": parts["scales"] / parts["scales"] * parts["scales"]}


class DrawsFromAll(TernGrad):
    """Draws from the global generator."""

    def next_key(self, wire: Wire) -> int:
        return int(torch.randint(2**31, ()))


class DrawsTheSameWhenResumed(TernGrad):
    """The step is missing from the checkpoint."""

    def next_key(self, wire: Wire) -> int:
        self.calls = getattr(self, "calls", 0) + 1
        self.step.fill_(self.calls)
        return super().next_key(wire)


class KeepsOnlyTheFirstError(OneBit):
    """The error of the server's code is lost."""

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        assert residual_N is not None
        reduced = super().forward(grad_N, residual_N, wire)
        share = -(-grad_N.numel() // wire.world_size)
        residual_N[share * wire.rank : share * (wire.rank + 1)] = 0
        return reduced


@pytest.mark.parametrize(
    ("invariant", "mutant", "options"),
    [
        (conformance.nothing_is_lost, AddsItsError, {}),
        (conformance.nothing_is_lost, KeepsOnlyTheFirstError, {"exchange": "ps"}),
        (conformance.edge_cases_are_handled, DividesByZero, {}),
        (conformance.global_random_state_is_unchanged, DrawsFromAll, {}),
        (conformance.resumed_equals_uninterrupted, DrawsTheSameWhenResumed, {}),
    ],
)
def test_a_fault_of_another_system_breaks_an_invariant(
    invariant: Any, mutant: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(Broken):
        invariant(Case(mutant, options, 3, memory="residual"))


@pytest.mark.parametrize("name", ["efsignsgd", "sign_norm", "onebit", "onebit_sgd"])
def test_a_sign_is_plus_or_minus_one_and_no_inverted_byte(name: str) -> None:
    """`~` of a mask of uint8 is 254 or 255, not 0 or 1 (GRACE's onebit)."""
    x_N = torch.tensor([2.0, -2.0] * 50)
    assert sent(quantiser(name, {}), x_N, [100]).tolist() == x_N.tolist()


# Options.


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("qsgd", {"levels": 128}, r"levels=128 with partition='linear': expected 1 to 127"),
        ("dithering", {"levels": 0}, r"levels=0 with partition='linear': expected 1 to 127"),
        ("dithering", {"levels": 32, "partition": "natural"}, r"levels=32 .*'natural': expected 1 to 31"),
        ("dithering", {"partition": "log"}, r"partition='log': expected linear or natural"),
        ("dithering", {"norm": "l1"}, r"norm='l1': expected max or l2"),
        ("qsgd", {"coding": "huffman"}, r"coding='huffman': expected packed or elias"),
        ("qsgd", {"bucket": 0}, r"bucket=0: expected 1 element or more, or none for the whole group"),
        ("natural", {"bits": 7}, r"bits=7: expected 8 or 9"),
        ("terngrad", {"clip": 0.0}, r"clip=0\.0: expected a number of standard deviations above 0, or none"),
        ("signum", {"sign_momentum": 1.0}, r"sign_momentum=1\.0: expected 0 or more, and less than 1"),
        ("onebit", {"exchange": "ring"}, r"exchange='ring': expected gather, ps or dist-ef"),
        ("int8", {"block": 0}, r"block=0: expected 1 element or more"),
        ("fp8", {"format": "e2m5"}, r"format='e2m5': expected e4m3 or e5m2"),
        ("fp4", {"block": 0}, r"block=0: expected 1 element or more"),
        ("mxfp8", {"format": "e8m0"}, r"format=.e8m0.: expected e4m3 or e5m2"),
    ],
)
def test_an_option_out_of_range_is_refused_with_the_allowed_range(
    name: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        registry.load("reducers", name)(**options)
