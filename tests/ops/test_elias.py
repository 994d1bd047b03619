"""Tests of Elias-delta streams: BytePS's format, decoding, and native ops against the reference."""
# N = elements, G = groups, V = words

import random

import pytest
import torch
from torch import Tensor
from vectors import assert_same, seeded, team

from sage import ops
from sage.ops import elias, native, reference_elias

needs_native = pytest.mark.skipif(native.MISSING is not None, reason=f"no extension: {native.MISSING}")

BY_HAND = ["1", "0100", "0101", "01100", "01101", "01110", "01111", "00100000", "00100001", "00100010"]
"""The codes of 1 to 10."""


def code(x: int) -> str:
    """Elias' definition, in digits: the number of bits of x, coded, then the bits of x without the first."""
    length = f"{x.bit_length():b}"
    return "0" * (len(length) - 1) + length + f"{x:b}"[1:]


def stream(levels: list[int]) -> str:
    """BytePS's loop over the elements, in digits."""
    bits, last = "", -1
    for i, level in enumerate(levels):
        if level:
            bits += code(i - last) + ("1" if level < 0 else "0") + code(abs(level))
            last = i
    return bits


def words(bits: str) -> list[int]:
    """The digits in words of 32, the last filled up with zeros, as signed numbers."""
    bits += "0" * (-len(bits) % 32)
    return [int(bits[i : i + 32], 2) - (2**32 if bits[i] == "1" else 0) for i in range(0, len(bits), 32)]


def digits(numbers: list[int]) -> list[str]:
    codes_K, widths_K = elias.encode(torch.tensor(numbers))
    return [f"{code:0{width}b}" for code, width in zip(codes_K.tolist(), widths_K.tolist(), strict=True)]


def test_the_first_bit_is_the_highest_of_its_word() -> None:
    bits_B = torch.tensor([True] + 30 * [False] + [True] + 33 * [False] + 31 * [True])
    bytes_B = ops.pack((~bits_B[:96]).to(torch.uint8), 1)
    words_V = ops.sign_words(bytes_B, [96], by_column=False)
    assert words_V.tolist() == [1 - 2**31, 0, 2**31 - 1]
    assert torch.equal(ops.sign_bytes(words_V[None], [96], by_column=False)[0], bytes_B)


def test_the_codes_of_one_to_ten_equal_those_computed_by_hand() -> None:
    assert digits(list(range(1, 11))) == BY_HAND
    assert [code(x) for x in range(1, 11)] == BY_HAND


def test_codes_around_every_power_of_two_follow_the_definition() -> None:
    numbers = [x for k in range(1, 32) for x in (2**k - 1, 2**k, 2**k + 1) if x <= elias.GREATEST]
    assert digits(numbers) == [code(x) for x in numbers]


def test_a_stream_equals_the_one_computed_by_hand() -> None:
    levels_N = torch.tensor([0, 2, -1, 0, 0, 2])
    words_V, bits_G = elias.encode_levels(levels_N, [6])
    #         gap 2    +    2      gap 1   −     1     gap 3   +     2
    bits = "010000100" + "111" + "010100100"
    assert bits_G.tolist() == [21]
    assert words_V.tolist() == [int(bits + 11 * "0", 2)]
    assert torch.equal(elias.decode_levels(words_V, bits_G, [6]), levels_N)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("greatest", [1, 2, 127, 2**30])
def test_the_streams_of_groups_equal_those_of_a_loop_and_decode_to_the_input(
    density: float, greatest: int
) -> None:
    draw = random.Random(greatest)
    for num_groups in range(6):
        sizes = [draw.choice([0, 1, 2, 7, 32, 100, 500]) for _ in range(num_groups)]
        groups = [
            [draw.choice([-1, 1]) * draw.randint(1, greatest) * (draw.random() < density) for _ in range(n)]
            for n in sizes
        ]
        levels_N = torch.tensor([level for group in groups for level in group], dtype=torch.int64)
        words_V, bits_G = elias.encode_levels(levels_N, sizes)
        assert bits_G.tolist() == [len(stream(group)) for group in groups]
        assert words_V.tolist() == [word for group in groups for word in words(stream(group))]
        assert torch.equal(elias.decode_levels(words_V, bits_G, sizes), levels_N)


def test_a_stream_that_fills_its_last_word_has_no_further_word() -> None:
    full = 6 * [1] + 2 * [
        0,
        0,
        0,
        -1,
    ]  # six of 3 bits, and two of 7: a gap of 4 in 5, a sign, and a level in 1
    assert len(stream(full)) == 32
    levels_N = torch.tensor(full + full + [0, 0] + full)
    sizes = [14, 14, 2, 14]
    words_V, bits_G = elias.encode_levels(levels_N, sizes)
    assert (words_V.numel(), bits_G.tolist()) == (3, [32, 32, 0, 32])
    assert torch.equal(elias.decode_levels(words_V, bits_G, sizes), levels_N)


def draw_levels(n: int, dtype: torch.dtype) -> Tensor:
    """Levels of all densities: of a few levels, the largest ones, or powers of two."""
    most = 127 if dtype is torch.int8 else 2**31 - 1
    kind = random.choice(["few", "any", "largest", "powers"])
    if kind == "powers":
        levels_N = 1 << torch.randint(most.bit_length(), (n,))
    else:
        levels_N = {
            "few": torch.randint(1, 5, (n,)),
            "any": torch.randint(1, most + 1, (n,)),
            "largest": torch.full((n,), most),
        }[kind]
    levels_N *= torch.randint(2, (n,)) * 2 - 1
    levels_N[torch.rand(n) >= random.choice([0.0, 0.001, 0.05, 0.45, 0.9, 1.0])] = 0
    return levels_N.to(dtype)


def draw_sizes(n: int) -> list[int]:
    stops = [*sorted(random.choices(range(n + 1), k=random.choice([0, 1, 7]))), n]
    return [stop - start for start, stop in zip([0, *stops], stops, strict=False)]


@needs_native
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32], ids=str)
@pytest.mark.parametrize("case", range(20))
def test_streams_and_levels_equal_the_reference(case: int, dtype: torch.dtype) -> None:
    n = seeded(case)
    levels_N, sizes = draw_levels(n, dtype), draw_sizes(n)
    words_V, bits_G = reference_elias.encode_levels(levels_N, sizes)
    expected_N = reference_elias.decode_levels(words_V, bits_G, sizes, torch.float32)
    for threads in (1, 2):
        with team(threads):
            ours_V, lengths_G = elias.encode_levels(levels_N, sizes)
            float_N = elias.decode_levels(words_V, bits_G, sizes, torch.float32)
            own_N = elias.decode_levels(words_V, bits_G, sizes, dtype)
        assert_same(ours_V, words_V)
        assert_same(lengths_G, bits_G)
        assert_same(float_N, expected_N)
        assert_same(own_N, levels_N)
    if levels_N.numel() and int(levels_N.long().abs().max()) > 127:
        for decode_levels in (elias.decode_levels, reference_elias.decode_levels):
            with pytest.raises(RuntimeError, match="words: not the Elias streams"):
                decode_levels(words_V, bits_G, sizes, torch.int8)


@needs_native
@pytest.mark.parametrize("case", range(60))
def test_damaged_streams_are_refused_or_decoded_equally_by_both(case: int) -> None:
    seeded(case)
    n = random.choice([1, 50, 3000])
    levels_N, sizes = draw_levels(n, torch.int8), draw_sizes(n)
    words_V, bits_G = elias.encode_levels(levels_N, sizes)
    if words_V.numel() == 0:
        words_V, bits_G = torch.zeros(1, dtype=torch.int32), bits_G.index_fill(0, torch.tensor([0]), 20)
    for _ in range(10):
        damaged_V, lengths_G, groups = words_V.clone(), bits_G.clone(), list(sizes)
        at = random.randrange(damaged_V.numel())
        match random.randrange(6):
            case 0:
                damaged_V[at] = random.randint(-(2**31), 2**31 - 1)
            case 1:
                damaged_V[at] = damaged_V[at] ^ (1 << random.randrange(31))
            case 2:
                damaged_V[at:] = random.choice([0, -1])
            case 3:
                damaged_V = damaged_V[:at]
            case 4:
                lengths_G[random.randrange(len(sizes))] += random.choice([-(2**31), -40, -1, 1, 5, 1000])
            case _:
                groups[random.randrange(len(sizes))] //= 2
        seen: list[Tensor | str] = []
        for decode_levels in (elias.decode_levels, reference_elias.decode_levels):
            try:
                seen.append(decode_levels(damaged_V, lengths_G, groups, torch.float32))
            except RuntimeError as error:
                seen.append(str(error).splitlines()[0].rpartition("words: ")[2])
        ours, theirs = seen
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
            assert_same(ours, theirs)
        else:
            assert ours == theirs
            assert str(ours).startswith("not the Elias streams of")


@needs_native
def test_a_magnitude_above_the_largest_possible_is_refused() -> None:
    for levels_N in (torch.tensor([3, -(2**31)], dtype=torch.int32), torch.tensor([3, 2**31])):
        with pytest.raises(
            RuntimeError, match="a magnitude of 2,147,483,648: expected at most 2,147,483,647"
        ):
            elias.encode_levels(levels_N, [2])
