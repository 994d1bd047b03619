"""Clips of sound with transcripts, which are kept in memory: spectrograms, SpecAugment, and batches."""
# N = clips, S = samples of a clip, F = frequency bins, T = frames, L = symbols of a transcript
# W = ranks, B = clips in one rank's batch

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sage.data.dataset import Batch, check_limit, count_steps, epoch_generator
from sage.data.prefetch import Job, in_advance

SYMBOLS = "_'ABCDEFGHIJKLMNOPQRSTUVWXYZ "
"""The symbols of deepspeech.pytorch in its order: the blank of the CTC loss first, the space last."""

_NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS) if number}
_MOST_BINS, _MOST_FRAMES = 26, 69


class Clip(NamedTuple):
    """A clip: its samples as int16, of shape (S), and the numbers of the symbols of its transcript."""

    samples_S: Tensor
    symbols: list[int]


class Speech:
    """A `sage.data.dataset.Dataset` of clips, whose batches are those of the task `transcribe`.

    The training clips are sorted by length and cut into bins of one batch each; up to B - 1 clips that are
    left over, the longest ones, are not used. The order of the bins is shuffled by epoch, and rank r takes
    bins r, r + W, ... of it. An epoch has ⌈N/(W·B)⌉ steps as in SIDCo and deepspeech.pytorch: where the bins
    do not suffice for it, the last step takes bins from the start of the order again.
    """

    def __init__(
        self,
        *,
        train: Sequence[Clip],
        test: Sequence[Clip],
        rate: int,
        checksums: dict[str, str],
        augment: bool = False,
        loaders: int = 0,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        """Sort the clips by length; a limit keeps only the first ones as they are given.

        Args:
            rate: Samples per second.
            augment: Mask frequencies and frames of the training clips at random: see `spec_augment`.
            loaders: Threads that compute the next batches; 0: the caller computes each batch.
        """
        check_limit(limit_train, len(train), "limit_train", of="clips")
        check_limit(limit_test, len(test), "limit_test", of="clips")
        self.train, self.test = (
            sorted(clips, key=lambda clip: len(clip.samples_S))
            for clips in (train[:limit_train], test[:limit_test])
        )
        self.rate, self.augment, self.loaders, self.checksums = rate, augment, loaders, checksums
        self.facts = {"num_bins": rate // 50 // 2 + 1, "num_symbols": len(SYMBOLS)}

    def num_steps(self, *, batch_size: int, world_size: int) -> int:
        """Count the batches of an epoch; the number is the same on every rank."""
        count_steps(len(self.train), world_size=world_size, batch_size=batch_size)
        return math.ceil(len(self.train) / (world_size * batch_size))

    def train_batches(
        self, *, epoch: int, rank: int, world_size: int, batch_size: int, seed: int, start: int = 0
    ) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch from batch `start` on; each epoch is shuffled anew."""
        num_steps = self.num_steps(batch_size=batch_size, world_size=world_size)
        bins = torch.randperm(len(self.train) // batch_size, generator=epoch_generator(seed, epoch)).tolist()

        def job(index: int) -> Job:
            first = bins[(index * world_size + rank) % len(bins)] * batch_size
            generator = epoch_generator(seed, epoch, rank, index) if self.augment else None
            return lambda: self._batch(self.train[first : first + batch_size], generator)

        return in_advance((job(index) for index in range(start, num_steps)), self.loaders)

    def test_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """Yield this rank's share of the test set, every W-th clip by length; the last batch may be short."""
        own = self.test[rank::world_size]

        def job(first: int) -> Job:
            return lambda: self._batch(own[first : first + batch_size])

        return in_advance((job(first) for first in range(0, len(own), batch_size)), self.loaders)

    def _batch(self, clips: Sequence[Clip], generator: torch.Generator | None = None) -> Batch:
        own = [spectrogram(clip.samples_S, self.rate) for clip in clips]
        if generator is not None:
            own = [spec_augment(x_FT, generator) for x_FT in own]
        spectrograms_BFT = (
            pad_sequence([x_FT.T for x_FT in own], batch_first=True).transpose(1, 2).contiguous()
        )
        targets_BL = pad_sequence([torch.tensor(clip.symbols) for clip in clips], batch_first=True)
        frames_B = torch.tensor([x_FT.shape[1] for x_FT in own])
        return spectrograms_BFT, frames_B, targets_BL, torch.tensor([len(clip.symbols) for clip in clips])


def numbered(transcript: str) -> list[int]:
    """Return the numbers of the symbols of a transcript in capitals; drop characters that are no symbols.

    >>> numbered("It's a-1")
    [10, 21, 1, 20, 28, 2]
    """
    return [number for symbol in transcript.upper() if (number := _NUMBERS.get(symbol))]


def spectrogram(samples_S: Tensor, rate: int) -> Tensor:
    """Compute the features of a clip, of shape (F, T), as deepspeech.pytorch and SIDCo do.

    Windows of 20 ms every 10 ms, symmetric Hamming, centred on reflected edges; log(1 + magnitude), less the
    mean and divided by the standard deviation of the clip. F = rate/100 + 1, T = 1 + S // (rate/100).

    Args:
        samples_S: int16, more than 10 ms.
    """
    window = rate // 50
    x_FT = torch.stft(
        samples_S.float() / 32767,
        n_fft=window,
        hop_length=rate // 100,
        window=torch.hamming_window(window, periodic=False),
        return_complex=True,
    )
    x_FT = x_FT.abs().log1p()
    return (x_FT - x_FT.mean()) / x_FT.std().clamp_min(1e-6)  # of silence the deviation is 0


def spec_augment(x_FT: Tensor, generator: torch.Generator) -> Tensor:
    """Set one band of 0 to 26 frequencies and one of 0 to 69 frames of a copy to zero, the mean.

    Park et al., "SpecAugment", 2019, https://arxiv.org/abs/1904.08779, section 2, with the sizes of
    deepspeech.pytorch. Its time warp is left out: it takes a value of the spectrogram for a position, so that
    it warps next to nothing.
    """
    x_FT = x_FT.clone()
    for x, most in ((x_FT, _MOST_BINS), (x_FT.T, _MOST_FRAMES)):
        size = min(_below(most + 1, generator), len(x))
        first = _below(len(x) - size + 1, generator)
        x[first : first + size] = 0
    return x_FT


def digest(clips: Sequence[Clip]) -> str:
    """Compute the sha256 of the samples of all clips, as big-endian int16: the same for any file format."""
    found = hashlib.sha256()
    for clip in clips:
        found.update(clip.samples_S.numpy().astype(">i2").tobytes())
    return found.hexdigest()


def transcripts_digest(clips: Sequence[Clip]) -> str:
    """Compute the sha256 of the transcripts of all clips, one per line, in capitals."""
    lines = ["".join(SYMBOLS[number] for number in clip.symbols) for clip in clips]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _below(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))
