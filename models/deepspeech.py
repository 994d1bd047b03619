"""DeepSpeech 2: two convolutions over time and frequency, recurrent layers, and a decoder to symbols.

Amodei et al., "Deep Speech 2", 2016, https://arxiv.org/abs/1512.02595, in the form of
https://github.com/SeanNaren/deepspeech.pytorch, version 2, which https://github.com/ahmedcs/SIDCo uses.

    cell, hidden x layers               parameters (161 bins, 29 symbols)
    LSTM 1024 x 5                       43,476,256    SIDCo
    LSTM  800 x 5                       27,569,568    GaussianK-SGD, gTop-k
    GRU  1024 x 5                       32,685,344
    LSTM 1024 x 5, bidirectional        86,618,400    deepspeech.pytorch
    LSTM  128 x 2                        1,128,480    for CPUs
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

# B = clips in the batch, F = frequency bins, T = frames, C = filters, H = hidden, K = symbols

# At 21 bins, fewer than the kernel has, oneDNN's backward pass corrupts memory on CPUs (torch 2.14.1).
_KERNEL_BINS = 41


class DeepSpeech(nn.Module):
    """A network that gives the logits of the symbols in each frame, for the CTC loss.

    Both convolutions halve the frequencies, and the first halves the frames: T frames become (T - 1)//2 + 1.
    In the input and after each step of the convolutions everything beyond a clip's own length is zeroed, so
    that in evaluation the logits of a clip do not depend on the padding beside it.

        >>> model = DeepSpeech(hidden=8, layers=2, num_bins=161, num_symbols=29)
        >>> logits_BTK, frames_B = model(torch.zeros(2, 161, 50), torch.tensor([50, 31]))
        >>> logits_BTK.shape, frames_B
        (torch.Size([2, 25, 29]), tensor([25, 16]))

    Args:
        rnn: The kind of the recurrent layers.
        hidden: Units of each recurrent layer, and in each direction.
        layers: Number of recurrent layers.
        bidirectional: Recurrent layers in both directions, whose outputs are added.
        lookahead: If not bidirectional: the following frames that a last convolution over time sees.
        filters: Filters of each convolution.
    """

    def __init__(
        self,
        *,
        rnn: Literal["lstm", "gru"] = "lstm",
        hidden: int = 1024,
        layers: int = 5,
        bidirectional: bool = False,
        lookahead: int = 20,
        filters: int = 32,
        num_bins: int,
        num_symbols: int,
    ) -> None:
        super().__init__()
        if rnn not in ("lstm", "gru"):
            raise ValueError(f"rnn is {rnn!r}: give lstm or gru")
        smallest = {"hidden": (hidden, 1), "layers": (layers, 1), "filters": (filters, 1)}
        for name, (value, least) in (smallest | {"lookahead": (lookahead, 0)}).items():
            if value < least:
                raise ValueError(f"{name} is {value}: give {least} or more")
        if num_bins < _KERNEL_BINS:
            raise ValueError(
                f"num_bins is {num_bins}, and the first convolution is {_KERNEL_BINS} bins high: "
                f"use a data set of {_KERNEL_BINS} bins or more"
            )
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(1, filters, (_KERNEL_BINS, 11), stride=(2, 2), padding=(20, 5)),
                nn.BatchNorm2d(filters),
                nn.Hardtanh(0, 20),
                nn.Conv2d(filters, filters, (21, 11), stride=(2, 1), padding=(10, 5)),
                nn.BatchNorm2d(filters),
                nn.Hardtanh(0, 20),
            ]
        )
        bins = _halved(_halved(num_bins))
        cell = nn.LSTM if rnn == "lstm" else nn.GRU
        widths = [filters * bins, *[hidden] * (layers - 1)]
        self.recurrent = nn.ModuleList(
            cell(width, hidden, batch_first=True, bidirectional=bidirectional) for width in widths
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(layers - 1))
        self.lookahead = lookahead
        self.context = (
            None if bidirectional else nn.Conv1d(hidden, hidden, lookahead + 1, groups=hidden, bias=False)
        )
        self.norm = nn.BatchNorm1d(hidden)
        self.decoder = nn.Linear(hidden, num_symbols, bias=False)

    def forward(self, spectrograms_BFT: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, of shape (B, T, K), and the number of frames of each clip among them."""
        x_BCFT = _own_frames(spectrograms_BFT[:, None], frames_B)
        frames_B = torch.div(frames_B - 1, 2, rounding_mode="floor") + 1
        for module in self.convolutions:
            x_BCFT = _own_frames(module(x_BCFT), frames_B)
        x_BTH = x_BCFT.flatten(1, 2).transpose(1, 2)
        lengths_B = frames_B.cpu()  # where PyTorch wants the lengths of packed sequences
        for layer, recurrent in enumerate(self.recurrent):
            if layer:
                x_BTH = _over_frames(self.norms[layer - 1], x_BTH)
            x_BTH = _recur(recurrent, x_BTH, lengths_B)
        if self.context is not None:
            padded_BHT = functional.pad(x_BTH.transpose(1, 2), (0, self.lookahead))
            x_BTH = functional.hardtanh(self.context(padded_BHT), 0, 20).transpose(1, 2)
        logits_BTK: Tensor = self.decoder(_over_frames(self.norm, x_BTH))
        return logits_BTK, frames_B


def _halved(bins: int) -> int:
    return (bins - 1) // 2 + 1


def _own_frames(x_BCFT: Tensor, frames_B: Tensor) -> Tensor:
    """Zero what is beyond each clip's own frames."""
    beyond_BT = torch.arange(x_BCFT.shape[-1], device=x_BCFT.device) >= frames_B[:, None]
    return x_BCFT.masked_fill(beyond_BT[:, None, None], 0)


def _over_frames(norm: nn.Module, x_BTH: Tensor) -> Tensor:
    """Normalise each feature over all frames of all clips."""
    normalised: Tensor = norm(x_BTH.flatten(0, 1))
    return normalised.view(x_BTH.shape)


def _recur(recurrent: nn.Module, x_BTH: Tensor, lengths_B: Tensor) -> Tensor:
    """Apply a recurrent layer to each clip's own frames; add the directions. Later frames become 0."""
    packed: PackedSequence = pack_padded_sequence(x_BTH, lengths_B, batch_first=True, enforce_sorted=False)
    output, _ = recurrent(packed)
    y_BTH, _ = pad_packed_sequence(output, batch_first=True, total_length=x_BTH.shape[1])
    if recurrent.bidirectional:
        y_BTH = y_BTH.unflatten(-1, (2, -1)).sum(2)
    return y_BTH


MODEL = DeepSpeech
