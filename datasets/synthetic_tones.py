"""Synthetic tones, not speech: words of Python's help topics whose letters sound as pairs of tones."""
# S = samples of a clip, C = characters of a transcript

import hashlib
import platform
import re
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from sage.data.dataset import check_limit
from sage.data.help_topics import help_topics
from sage.data.speech import Clip, Speech, digest, numbered
from sage.validate import Range

_RATE = 8000
_NUM = {"train": 600, "test": 100}
_LETTER_SECONDS = 0.06
# 5 low and 6 high tones (Hz). Their ratios are above 1.1/0.9, the range of the clips' pitch.
_LOW = 300 * 1.3 ** np.arange(5)
_HIGH = 1150 * 1.25 ** np.arange(6)


class SyntheticTones(Speech):
    """600 clips for training and 100 for testing, of about a second each at 8 kHz, made by the constructor.

    A clip is one to three words. Each letter is a low and a high tone of 60 ms, a space is silence. Each clip
    has its own pitch (by up to 10 %) and speed (by up to 15 %), and white noise. The words of the test split
    are not in the training split. Error rates on these clips say nothing about speech.

    The words depend on the Python version: compare results across machines only if the recorded checksums
    are equal.
    """

    provenance = "synthetic tones, not speech"

    def __init__(
        self,
        root: Path,
        *,
        loaders: Annotated[int, Range(0, 256)] = 0,
        limit_train: Annotated[int | None, Range(1)] = None,
        limit_test: Annotated[int | None, Range(1)] = None,
    ) -> None:
        """Make the clips; `root` is not used.

        Args:
            loaders: Threads of each rank that compute the next batches; they do not change the batches.
            limit_train: Train only on this number of clips, the first ones.
            limit_test: Test only on this number of clips, the first ones.
        """
        clips, checksums = {}, {}
        for split, limit in (("train", limit_train), ("test", limit_test)):
            check_limit(limit, _NUM[split], f"limit_{split}", of="clips")
            own = words(split)
            clips[split] = [clip(own, (split == "test", number)) for number in range(limit or _NUM[split])]
            checksums[f"synthetic-tones-{split}-{platform.python_version()}"] = digest(clips[split])
        super().__init__(
            train=clips["train"], test=clips["test"], rate=_RATE, checksums=checksums, loaders=loaders
        )

    @staticmethod
    def prepare(root: Path) -> None:
        """Do nothing, because the constructor makes the clips."""


def words(split: str) -> list[str]:
    """List the words of two to eight letters of a split; about every fifth word is for testing."""
    found = set(re.findall(r"\b[a-z]{2,8}\b", " ".join(help_topics().values())))
    return sorted(word for word in found if (_hash(word) % 5 == 0) == (split == "test"))


def clip(own: list[str], seed: tuple[int, int]) -> Clip:
    """Make a clip of words that are drawn from a list; it depends on the arguments alone."""
    random = np.random.RandomState(seed)  # numpy guarantees that its stream never changes
    text = " ".join(own[random.randint(len(own))] for _ in range(1 + random.randint(3)))
    pitch, speed = random.uniform(0.9, 1.1), random.uniform(0.85, 1.15)
    before, after = random.uniform(0.03, 0.1, size=2)
    letters_C = np.array([ord(letter) - ord("a") for letter in text])  # a space is below 0
    per_letter = round(_RATE * _LETTER_SECONDS / speed)
    # Tones rise and fall within 5 ms, so that a letter that is repeated sounds twice.
    edge = np.minimum(np.arange(per_letter) + 0.5, _RATE / 200) / (_RATE / 200)
    loudness_S = np.outer(letters_C >= 0, edge * edge[::-1]).ravel()
    seconds_S = np.arange(len(loudness_S)) / _RATE
    tones_S = sum(
        np.sin(
            2 * np.pi * pitch * np.repeat(tones[letters_C % 30 // step % len(tones)], per_letter) * seconds_S
        )
        for tones, step in ((_LOW, 1), (_HIGH, 5))
    )
    silent = [(round(_RATE * before), round(_RATE * after))]
    x_S = np.pad(0.3 * tones_S * loudness_S, silent)
    x_S += random.uniform(-0.05, 0.05, size=len(x_S))
    return Clip(torch.from_numpy(np.rint(32767 * x_S).astype(np.int16)), numbered(text))


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")


DATASET = SyntheticTones
