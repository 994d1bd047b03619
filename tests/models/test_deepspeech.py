"""Tests of DeepSpeech: its frames, that padding has no effect on a clip, and what it refuses."""

from typing import Any

import pytest
import torch

from sage.models.deepspeech import DeepSpeech

# B = clips, F = frequency bins, T = frames, K = symbols

SMALL = {"hidden": 6, "layers": 3, "filters": 2, "num_bins": 41, "num_symbols": 5}
VARIANTS: list[dict[str, Any]] = [{}, {"rnn": "gru"}, {"bidirectional": True}, {"lookahead": 0}]


def small(**options: Any) -> DeepSpeech:
    torch.manual_seed(0)
    return DeepSpeech(**{**SMALL, **options})


@pytest.mark.parametrize("options", VARIANTS)
def test_the_logits_of_a_clip_do_not_depend_on_the_padding_beside_it(options: dict[str, Any]) -> None:
    model = small(**options).eval().double()
    x_BFT = torch.randn(3, 41, 40).double()
    frames_B = torch.tensor([17, 40, 1])
    logits_BTK, out_B = model(x_BFT, frames_B)
    assert out_B.tolist() == [(frames - 1) // 2 + 1 for frames in frames_B.tolist()]
    for x_FT, frames, logits_TK, out in zip(x_BFT, frames_B, logits_BTK, out_B, strict=True):
        alone_1TK, _ = model(x_FT[None, :, :frames], frames[None])
        torch.testing.assert_close(alone_1TK[0], logits_TK[:out])


@pytest.mark.parametrize(("options", "reach"), [({}, 20), ({"lookahead": 3}, 3)])
def test_a_frame_sees_as_many_later_frames_as_the_lookahead_and_the_convolutions_give(
    options: dict[str, Any], reach: int
) -> None:
    model = small(layers=1, **options).eval()
    x_1FT = torch.randn(1, 41, 120)
    logits_1TK, _ = model(x_1FT, torch.tensor([120]))
    changed_1FT = x_1FT.clone()
    changed_1FT[..., -1] += 5
    other_1TK, _ = model(changed_1FT, torch.tensor([120]))
    differs_T = (logits_1TK != other_1TK).any(-1)[0]
    # The last input frame reaches 3 output frames through the first convolution, 5 more through the second.
    earliest = 60 - 3 - 5 - reach
    assert not differs_T[:earliest].any()
    assert differs_T[-1]
    assert differs_T[earliest + 8 :].any()


@pytest.mark.parametrize("options", [{"hidden": 0}, {"layers": 0}, {"filters": 0}, {"lookahead": -1}])
def test_a_size_that_is_too_small_is_refused_by_name(options: dict[str, int]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} is {value}: give {value + 1} or more"):
        small(**options)


def test_another_kind_of_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="rnn is 'rnn': give lstm or gru"):
        small(rnn="rnn")


def test_fewer_bins_than_the_first_convolution_is_high_are_refused() -> None:
    with pytest.raises(ValueError, match="num_bins is 40, and the first convolution is 41 bins high: use"):
        small(num_bins=40)
