"""Tests of transcription: edit distances, greedy decoding, error rates, and the scale of the CTC loss."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from sage.tasks.transcribe import Transcribe, edit_distance, greedy

# B = clips, T = frames, L = symbols of a transcript, K = symbols: 0 blank, 1 a, 2 b, 3 c, 4 space

K = 5
TEXT = st.text("ab", max_size=5)


class Says(nn.Module):
    """A model whose best symbols are given, one row per clip."""

    def __init__(self, best_BT: list[list[int]], frames_B: list[int]) -> None:
        super().__init__()
        self.logits_BTK = nn.Parameter(4 * functional.one_hot(torch.tensor(best_BT), K).float())
        self.frames_B = torch.tensor(frames_B)

    def forward(self, spectrograms_BFT: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
        rows_B = spectrograms_BFT[:, 0, 0].long()
        return self.logits_BTK[rows_B], self.frames_B[rows_B]


def batch(targets_BL: list[list[int]], lengths_B: list[int], rows: slice) -> tuple[Tensor, ...]:
    x_B11 = torch.arange(len(targets_BL)).float()[:, None, None]
    frames_B = torch.ones(len(targets_BL), dtype=torch.int64)
    return tuple(t[rows] for t in (x_B11, frames_B, torch.tensor(targets_BL), torch.tensor(lengths_B)))


# "ab a" spoken as "b a", "c" as "c", "a bc" as "abc" (the space is lost)
MODEL = Says([[2, 2, 0, 4, 4, 1, 3, 3], [0, 3, 3, 3, 0, 0, 0, 0], [1, 1, 0, 2, 0, 3, 3, 0]], [6, 8, 8])
TARGETS, LENGTHS = [[1, 2, 4, 1], [3, 0, 0, 0], [1, 4, 2, 3]], [4, 1, 4]


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("ab", "ba", 2),
    ],
)
def test_edit_distances_are_those_of_known_cases(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == distance


@given(TEXT, TEXT, TEXT)
@settings(max_examples=40)
def test_the_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_decoding_merges_repeats_drops_blanks_and_stops_at_the_clips_end() -> None:
    logits_BTK = functional.one_hot(torch.tensor([[1, 1, 0, 1, 2, 2], [0, 0, 3, 3, 0, 3]]), K)
    assert greedy(logits_BTK, torch.tensor([4, 6])) == [[1, 1], [3, 3]]
    assert greedy(logits_BTK, torch.tensor([0, 2])) == [[], []]


def test_error_rates_are_edits_over_all_words_and_over_all_characters() -> None:
    task = Transcribe({"num_symbols": K})
    metrics = task.metrics(task.sums(MODEL, batch(TARGETS, LENGTHS, slice(None))))
    # words: "ab a" has 1 error of 2, "c" 0 of 1, "a bc" 2 of 2; characters: "aba" as "ba" has 1 error of 3
    assert metrics["wer"] == pytest.approx(3 / 5)
    assert metrics["wer_per_clip"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert metrics["cer"] == pytest.approx(1 / 7)


def test_sums_of_parts_add_up_to_those_of_the_whole() -> None:
    task = Transcribe({"num_symbols": K})
    whole = task.sums(MODEL, batch(TARGETS, LENGTHS, slice(None)))
    parts = [task.sums(MODEL, batch(TARGETS, LENGTHS, rows)) for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(sum(parts), whole)
    assert whole.dtype == torch.float64
    assert len(whole) == len(task.sum_names)


def test_a_transcript_without_words_counts_each_decoded_word_once() -> None:
    task = Transcribe({"num_symbols": K})
    sums = task.sums(MODEL, batch([[0], [0], [0]], [0, 0, 0], slice(1, 2)))
    assert sums[:5].tolist() == [1, 0, 1, 0, 1]
    assert task.metrics(sums)["wer"] == 1


def test_the_loss_is_the_negative_log_likelihood_of_all_alignments_over_the_clips() -> None:
    torch.manual_seed(0)
    model = Says([[0, 0, 0]] * 2, [3, 2])
    nn.init.normal_(model.logits_BTK)
    inputs = batch([[1, 2], [3, 0]], [2, 1], slice(None))
    total = 0.0
    for row, (wanted, frames) in enumerate([([1, 2], 3), ([3], 2)]):
        p_TK = model.logits_BTK[row].detach().softmax(-1)
        likelihood = torch.tensor(0.0)
        for path in itertools.product(range(K), repeat=frames):
            one_hot = functional.one_hot(torch.tensor([path]), K)
            if greedy(one_hot, torch.tensor([frames])) == [wanted]:
                likelihood = likelihood + p_TK[torch.arange(frames), torch.tensor(path)].prod()
        total -= float(likelihood.log())
    task = Transcribe({"num_symbols": K})
    loss = task.loss(model, inputs)
    assert float(loss.detach()) == pytest.approx(total / 2, rel=1e-5)
    assert task.metrics(task.sums(model, inputs))["loss"] == pytest.approx(total / 2, rel=1e-5)
    loss.backward()
    assert model.logits_BTK.grad is not None
    assert model.logits_BTK.grad.isfinite().all()
