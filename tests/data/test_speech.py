"""Tests of clips with transcripts: features, SpecAugment, bins by length, and the synthetic tones."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sage.data.dataset import epoch_generator
from sage.data.help_topics import help_topics
from sage.data.speech import SYMBOLS, Clip, Speech, numbered, spec_augment, spectrogram
from sage.datasets.synthetic_tones import SyntheticTones, words

# N = clips, S = samples of a clip, F = frequency bins, T = frames, B = clips in a batch, W = ranks

RATE = 1000


def made(num: int, **options: Any) -> Speech:
    """Clips of different lengths; the one of 100 + 10 i samples has i + 1 symbols, the last i % 26 + 2."""
    clips = [Clip(noise(100 + 10 * i, seed=i), [2] * i + [i % 26 + 2]) for i in range(num)]
    mixed = [clips[i] for i in torch.randperm(num, generator=epoch_generator(0, 0)).tolist()]
    return Speech(train=mixed, test=mixed[: num // 2], rate=RATE, checksums={}, **options)


def noise(num: int, seed: int = 0) -> Tensor:
    return torch.randint(-3000, 3000, (num,), generator=epoch_generator(seed, 0), dtype=torch.int16)


def epoch(
    data: Speech, *, batch_size: int, rank: int = 0, world_size: int = 1, start: int = 0, number: int = 0
) -> list[tuple[Tensor, ...]]:
    return list(
        data.train_batches(
            epoch=number, rank=rank, world_size=world_size, batch_size=batch_size, seed=5, start=start
        )
    )


def same(left: list[tuple[Tensor, ...]], right: list[tuple[Tensor, ...]]) -> bool:
    return len(left) == len(right) and all(
        a.equal(b) for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_a_spectrogram_is_the_log_magnitude_of_centred_windows_normalised() -> None:
    samples_S = noise(437)
    x_FT = spectrogram(samples_S, RATE)
    assert x_FT.shape == (11, 1 + 437 // 10)
    padded = np.pad(samples_S.numpy() / 32767, 10, mode="reflect")
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(20) / 19)
    expected = np.array([np.abs(np.fft.rfft(window * padded[at : at + 20])) for at in range(0, 438, 10)]).T
    expected = np.log1p(expected)
    expected = (expected - expected.mean()) / expected.std(ddof=1)
    np.testing.assert_allclose(x_FT.numpy(), expected, atol=2e-4)


def test_the_spectrogram_of_silence_is_zero() -> None:
    assert spectrogram(torch.zeros(300, dtype=torch.int16), RATE).abs().max() == 0


@settings(max_examples=examples(30))
@given(st.integers(5, 161), st.integers(2, 120), st.integers(0, 2**30))
def test_specaugment_zeroes_one_band_of_frequencies_and_one_of_frames_of_a_copy(
    num_bins: int, frames: int, seed: int
) -> None:
    x_FT = torch.ones(num_bins, frames)
    masked_FT = spec_augment(x_FT, epoch_generator(seed, 0))
    assert x_FT.min() == 1
    assert set(masked_FT.unique().tolist()) <= {0.0, 1.0}
    zero_F, zero_T = masked_FT.amax(1) == 0, masked_FT.amax(0) == 0
    for zero, most in ((zero_F, 26), (zero_T, 69)):
        assert len(re.findall("1+", "".join(str(int(z)) for z in zero))) <= 1 or masked_FT.max() == 0
        assert zero.sum() <= most or masked_FT.max() == 0
    assert (masked_FT == 0).equal(zero_F[:, None] | zero_T)


def test_the_sizes_of_the_masks_are_uniform() -> None:
    masked = [spec_augment(torch.ones(161, 500), epoch_generator(seed, 1)) for seed in range(600)]
    sizes_F = torch.tensor([float((x_FT.amax(1) == 0).sum()) for x_FT in masked])
    sizes_T = torch.tensor([float((x_FT.amax(0) == 0).sum()) for x_FT in masked])
    assert [int(x) for x in (*sizes_F.aminmax(), *sizes_T.aminmax())] == [0, 26, 0, 69]
    assert float(sizes_F.mean()) == pytest.approx(13, abs=1.3)
    assert float(sizes_T.mean()) == pytest.approx(34.5, abs=3.5)


def test_symbols_are_numbered_from_the_blank_to_the_space_and_others_dropped() -> None:
    assert len(SYMBOLS) == 29
    assert numbered("A B'Z") == [2, 28, 3, 1, 27]
    assert numbered("a_b\t1") == [2, 3], "an underscore in a text is not the blank"


def test_a_batch_pads_clips_of_about_the_same_length() -> None:
    for x_BFT, frames_B, targets_BL, lengths_B in epoch(made(12), batch_size=3):
        assert x_BFT.dtype == torch.float32
        assert {each.dtype for each in (frames_B, targets_BL, lengths_B)} == {torch.int64}
        assert x_BFT.shape == (3, 11, int(frames_B.max()))
        assert x_BFT.is_contiguous()
        # A clip of i + 1 symbols has 11 + i frames, and neighbours are in one batch.
        assert (frames_B - lengths_B).tolist() == [10] * 3
        assert lengths_B.diff().tolist() == [1, 1]
        for x_FT, frames, row_L, length in zip(x_BFT, frames_B, targets_BL, lengths_B, strict=True):
            assert x_FT[:, frames:].abs().sum() == 0
            assert x_FT[:, : int(frames)].std().item() == pytest.approx(1, abs=1e-4)
            assert row_L[:length].tolist() == [2] * (int(length) - 1) + [(int(length) - 1) % 26 + 2]
            assert row_L[length:].sum() == 0


@pytest.mark.parametrize(
    ("num", "batch_size", "world_size"), [(12, 3, 1), (12, 3, 2), (11, 3, 2), (14, 3, 4)]
)
def test_an_epoch_takes_each_bin_once_and_starts_anew_where_they_do_not_suffice(
    num: int, batch_size: int, world_size: int
) -> None:
    data = made(num)
    ranks = [epoch(data, batch_size=batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    steps = -(-num // (batch_size * world_size))
    assert [len(own) for own in ranks] == [steps] * world_size
    assert data.num_steps(batch_size=batch_size, world_size=world_size) == steps
    firsts_SW = [[int(own[step][3].min()) for own in ranks] for step in range(steps)]
    assert all(len(set(step)) == world_size for step in firsts_SW), "the batches of a step are disjoint"
    used = Counter(first for step in firsts_SW for first in step)
    bins = num // batch_size
    assert set(used) == {1 + batch_size * i for i in range(bins)}
    assert sum(used.values()) == steps * world_size
    assert max(used.values()) <= -(-steps * world_size // bins)


def test_the_order_of_the_bins_changes_with_the_epoch() -> None:
    data = made(60)
    first, second = (epoch(data, batch_size=3, number=number) for number in range(2))
    assert [b[3][0].item() for b in first] != [b[3][0].item() for b in second]


def test_batches_do_not_depend_on_loaders_resume_or_global_generators() -> None:
    alone = epoch(made(40, augment=True), batch_size=4, rank=1, world_size=2)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    for loaders in (0, 1, 3):
        data = made(40, augment=True, loaders=loaders)
        assert same(alone, epoch(data, batch_size=4, rank=1, world_size=2))
        assert same(alone[3:], epoch(data, batch_size=4, rank=1, world_size=2, start=3))
        tested = list(data.test_batches(rank=1, world_size=2, batch_size=3))
        assert same(tested, list(made(40).test_batches(rank=1, world_size=2, batch_size=3)))
    assert torch.get_rng_state().equal(state)
    assert not same(alone, epoch(made(40), batch_size=4, rank=1, world_size=2))


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
def test_the_shares_of_the_test_set_are_disjoint_and_cover_it(world_size: int) -> None:
    data = made(40)
    shares = [list(data.test_batches(rank=r, world_size=world_size, batch_size=3)) for r in range(world_size)]
    found = [length for own in shares for batch in own for length in batch[3].tolist()]
    assert sorted(found) == [len(clip.symbols) for clip in data.test]


def test_too_few_clips_and_wrong_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="12 training samples do not fill one step of 2 ranks x 7 samples"):
        made(12).num_steps(batch_size=7, world_size=2)
    with pytest.raises(ValueError, match="limit_train is 13: give 1 to 12 clips"):
        made(12, limit_train=13)


def test_synthetic_tones_are_labelled_and_their_test_words_are_new(tmp_path: Any) -> None:
    data = SyntheticTones(tmp_path, limit_train=30, limit_test=20)
    assert data.provenance == "synthetic tones, not speech"
    assert data.facts == {"num_bins": 81, "num_symbols": 29}
    assert (len(data.train), len(data.test)) == (30, 20)
    assert not set(words("train")) & set(words("test"))
    text = " ".join(help_topics().values())
    for split in ("train", "test"):
        assert all(re.search(rf"\b{word}\b", text) for word in words(split)[:20])
    assert data.checksums == SyntheticTones(tmp_path, limit_train=30, limit_test=20).checksums
    for each in (*data.train, *data.test):
        transcript = "".join(SYMBOLS[number] for number in each.symbols)
        assert re.fullmatch("[A-Z]{2,8}( [A-Z]{2,8}){0,2}", transcript)
        seconds = len(each.samples_S) / 8000
        assert (seconds - 0.06) / len(transcript) + 0.001 > 0.06 / 1.151
        assert (seconds - 0.2) / len(transcript) < 0.06 / 0.849


def test_each_letter_is_a_pair_of_tones_of_its_own() -> None:
    from sage.datasets.synthetic_tones import clip

    spectra = {}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        own = clip([letter * 20], (0, 7))  # the same pitch for all, since it depends on the seed
        spectrum = np.abs(np.fft.rfft(own.samples_S.numpy()))
        half = int(1075 * len(own.samples_S) / 8000)
        spectra[letter] = (int(spectrum[:half].argmax()), half + int(spectrum[half:].argmax()))
    assert len(set(spectra.values())) == 26
