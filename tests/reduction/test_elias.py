"""Elias-delta streams: bit by bit as BytePS writes them, and back."""
# N = elements, G = groups

import random

import pytest
import torch

from sage.reduction.coding import elias
from sage.reduction.coding.bitpacking import pack_words, unpack_words

BY_HAND = ["1", "0100", "0101", "01100", "01101", "01110", "01111", "00100000", "00100001", "00100010"]
"""The codes of 1 to 10."""


def code(x: int) -> str:
    """Elias' definition, in digits: the bits of x less the first, after their number coded likewise."""
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


def test_words_take_the_first_bit_highest() -> None:
    bits_B = torch.tensor([True] + 30 * [False] + [True] + 33 * [False] + 31 * [True])
    words_V = pack_words(bits_B[:96])
    assert words_V.tolist() == [1 - 2**31, 0, 2**31 - 1]
    assert torch.equal(unpack_words(words_V), bits_B[:96].to(torch.uint8))


def test_the_codes_of_one_to_ten_are_those_worked_out_by_hand() -> None:
    assert digits(list(range(1, 11))) == BY_HAND
    assert [code(x) for x in range(1, 11)] == BY_HAND


def test_codes_around_every_power_of_two_are_those_of_the_definition() -> None:
    numbers = [x for k in range(1, 32) for x in (2**k - 1, 2**k, 2**k + 1) if x <= elias.GREATEST]
    assert digits(numbers) == [code(x) for x in numbers]


def test_a_stream_by_hand() -> None:
    levels_N = torch.tensor([0, 2, -1, 0, 0, 2])
    words_V, bits_G = elias.encode_levels(levels_N, [6])
    #         gap 2    +    2      gap 1   −     1     gap 3   +     2
    bits = "010000100" + "111" + "010100100"
    assert bits_G.tolist() == [21]
    assert words_V.tolist() == [int(bits + 11 * "0", 2)]
    assert torch.equal(elias.decode_levels(words_V, bits_G, [6]), levels_N)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("greatest", [1, 2, 127, 2**30])
def test_the_streams_of_groups_are_those_of_the_loop_and_come_back(density: float, greatest: int) -> None:
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


def test_a_stream_that_ends_with_its_word_ends_there() -> None:
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
