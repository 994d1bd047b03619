"""The two models of section `steps`: ResNet-50 on images, and a GPT of 124 million parameters on tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Three convolutions (1×1, 3×3, 1×1) and a shortcut (He et al., CVPR 2016, table 1)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            *self._layer(channels, width, 1, 1),
            nn.ReLU(inplace=True),
            *self._layer(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *self._layer(width, out, 1, 1),
        )
        is_same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if is_same else nn.Sequential(*self._layer(channels, out, 1, stride))

    @staticmethod
    def _layer(channels: int, out: int, kernel: int, stride: int) -> Sequence[nn.Module]:
        convolution = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)
        return convolution, nn.BatchNorm2d(out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output."""
        return torch.relu(self.body(x_BCHW) + self.shortcut(x_BCHW))


def resnet50(blocks: Sequence[int] = (3, 4, 6, 3)) -> nn.Module:
    """ResNet-50 for 1,000 classes: 25.6 million parameters in 161 tensors."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    channels = 64
    for stage, number in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(number):
            layers.append(Bottleneck(channels, width, 2 if stage > 0 and block == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class Gpt(nn.Module):
    """A decoder with GPT-2's sizes: 12 layers of 768, 12 heads, tied embeddings (Radford et al., 2019)."""

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12, words: int = 50_304) -> None:
        super().__init__()
        self.words = words
        self.tokens, self.places = nn.Embedding(words, width), nn.Embedding(1024, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, token_BT: Tensor) -> Tensor:
        """Return the logits of the next tokens, (B·T, words)."""
        length = token_BT.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=token_BT.device)
        x_BTC = self.tokens(token_BT) + self.places(torch.arange(length, device=token_BT.device))
        x_BTC = self.body(x_BTC, mask=mask, is_causal=True)
        return (x_BTC @ self.tokens.weight.T).flatten(0, 1)
