"""Transcription of speech: the CTC loss, and word and character error rates by greedy decoding."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sage.data.dataset import Batch

from .base import Task, stack

# B = clips in the batch, F = frequency bins, T = frames, L = symbols of a transcript, K = symbols in all


class Transcribe(Task):
    """Connectionist temporal classification of clips with transcripts: word and character error rates.

    Graves et al. 2006, https://doi.org/10.1145/1143844.1143891. A batch is (spectrograms_BFT, frames_B,
    targets_BL, lengths_B), padded beyond the frames and the lengths. Symbol 0 is the blank, and the last one,
    number `num_symbols` - 1, is the space between words. The model is called as `model(spectrograms, frames)`
    and returns logits (B, T, K) and the number of frames of each clip in them.

    The training loss is the sum over the batch divided by the number of clips, as in SIDCo and
    deepspeech.pytorch; it is not divided by the lengths of the transcripts, as PyTorch's `mean` is.

    Decoding takes the best symbol of each frame, merges repeated ones and drops blanks. `wer` is the edits of
    all clips divided by the words of all transcripts, `cer` the same for characters without spaces; both can
    exceed 1. `wer_per_clip` is the mean of the clips' own rates, which SIDCo reports (times 100). A
    clip with fewer frames than its transcript needs has an infinite loss.
    """

    metric = "wer"
    better = {"wer": "min", "cer": "min", "wer_per_clip": "min", "loss": "min"}
    sum_names = (
        "word_errors",
        "words",
        "character_errors",
        "characters",
        "clip_wer",
        "loss",
        "count",
    )
    needs = ("num_symbols",)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        spectrograms_BFT, frames_B, targets_BL, lengths_B = batch
        logits_BTK, frames_B = model(spectrograms_BFT, frames_B)
        return _ctc(logits_BTK, frames_B, targets_BL, lengths_B) / len(targets_BL)

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: Batch) -> Tensor:
        spectrograms_BFT, frames_B, targets_BL, lengths_B = batch
        logits_BTK, frames_B = model(spectrograms_BFT, frames_B)
        loss = _ctc(logits_BTK, frames_B, targets_BL, lengths_B).double()
        space = int(self.facts["num_symbols"]) - 1
        word_errors = words = character_errors = characters = 0
        clip_wer = 0.0
        decoded = greedy(logits_BTK, frames_B)
        for found, row, length in zip(decoded, targets_BL.tolist(), lengths_B.tolist(), strict=True):
            wanted = row[:length]
            wanted_words, found_words = _words(wanted, space), _words(found, space)
            errors = edit_distance(wanted_words, found_words)
            word_errors += errors
            words += len(wanted_words)
            clip_wer += errors / max(len(wanted_words), 1)
            wanted_letters, found_letters = ([s for s in text if s != space] for text in (wanted, found))
            character_errors += edit_distance(wanted_letters, found_letters)
            characters += len(wanted_letters)
        counts = (word_errors, words, character_errors, characters)
        return stack(*counts, torch.full_like(loss, clip_wer), loss, len(targets_BL))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        total = self._named(sums)
        return {
            "wer": total["word_errors"] / max(total["words"], 1),
            "cer": total["character_errors"] / max(total["characters"], 1),
            "wer_per_clip": total["clip_wer"] / total["count"],
            "loss": total["loss"] / total["count"],
        }


def greedy(logits_BTK: Tensor, frames_B: Tensor) -> list[list[int]]:
    """Decode each clip: the best symbol of each frame, repeated ones merged, then blanks (0) dropped.

    >>> greedy(torch.eye(3)[torch.tensor([[1, 1, 0, 1, 2, 2]])], torch.tensor([5]))
    [[1, 1, 2]]
    """
    decoded = []
    for best, frames in zip(logits_BTK.argmax(-1).tolist(), frames_B.tolist(), strict=True):
        own = best[:frames]
        decoded.append([s for s, before in zip(own, [0, *own], strict=False) if s not in (0, before)])
    return decoded


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Count the fewest insertions, deletions and substitutions that turn one sequence into the other.

    Levenshtein 1966; by rows, in time len(a)·len(b).

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def _ctc(logits_BTK: Tensor, frames_B: Tensor, targets_BL: Tensor, lengths_B: Tensor) -> Tensor:
    logs_TBK = logits_BTK.float().log_softmax(-1).transpose(0, 1)
    return functional.ctc_loss(logs_TBK, targets_BL, frames_B, lengths_B, reduction="sum")


def _words(symbols: Sequence[int], space: int) -> list[tuple[int, ...]]:
    """Split symbols at the spaces; several spaces in a row count as one."""
    words: list[tuple[int, ...]] = []
    word: list[int] = []
    for symbol in [*symbols, space]:
        if symbol != space:
            word.append(symbol)
        elif word:
            words.append(tuple(word))
            word = []
    return words


TASK = Transcribe
