"""GPT: a decoder-only transformer language model with learned positions and a tied decoder.

Radford, Wu, Child, Luan, Amodei, Sutskever, "Language Models are Unsupervised Multitask Learners", 2019, in
the form of https://github.com/karpathy/nanoGPT: normalisation before each block, GELU, no biases.

    workload                    layers    heads    width    parameters (V = words, T = tokens in a window)
    gpt-char-cpu-shakespeare         4        4      128    804,096 at V = 65, T = 64
    gpt-char-shakespeare             6        6      384    10,745,088 at V = 65, T = 256
    gpt-124m-openwebtext            12       12      768    124,373,760 at V = 50,304, T = 1,024
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

# B = windows in the batch, T = tokens in a window, V = words of the vocabulary, D = width, H = heads, E = D/H


class GPT(nn.Module):
    """A language model that predicts each token of a window from the tokens before it in the window.

    All weights are Gaussian with standard deviation 0.02, and 0.02/sqrt(2 layers) for the last linear layer
    of each residual branch; biases are 0. So the first loss is close to ln V.

        >>> model = GPT(layers=2, heads=2, width=8, vocab_size=10, block_size=6)
        >>> model(torch.zeros(3, 6, dtype=torch.int64)).shape
        torch.Size([3, 6, 10])

    Args:
        layers: Number of blocks; each has an attention layer and a perceptron of 4 times the width.
        heads: Number of attention heads.
        width: Width of the embeddings and of the residual stream; a multiple of heads.
        dropout: Dropout rate on the embeddings, the attention weights and the output of each branch.
        bias: Whether linear layers and normalisations have biases; GPT-2 has, nanoGPT's default has not.
    """

    def __init__(
        self,
        *,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        bias: bool = False,
        vocab_size: int,
        block_size: int,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(
                f"width is {width} and heads is {heads}: set the width to a multiple of the number of heads"
            )
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(block_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, bias=bias) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=bias)
        self.decoder = nn.Linear(width, vocab_size, bias=False)
        self.decoder.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                is_last = name.endswith("projection.weight")
                nn.init.normal_(parameter, std=0.02 * (2 * layers) ** -0.5 if is_last else 0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the logits of each next token, of shape (B, T, V)."""
        position_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTD = self.dropout(self.embedding(tokens_BT) + self.positions(position_T))
        logits_BTV: Tensor = self.decoder(self.norm(self.blocks(x_BTD)))
        return logits_BTV


class Block(nn.Module):
    """An attention layer and a perceptron, each on the normalised residual stream and added to it."""

    def __init__(self, width: int, heads: int, dropout: float, *, bias: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=bias)
        self.attention = Attention(width, heads, dropout, bias=bias)
        self.perceptron_norm = nn.LayerNorm(width, bias=bias)
        self.perceptron = Perceptron(width, dropout, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the residual stream after this block."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        return x_BTD + self.perceptron(self.perceptron_norm(x_BTD))


class Attention(nn.Module):
    """Causal self-attention with several heads."""

    def __init__(self, width: int, heads: int, dropout: float, *, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.projection = nn.Linear(width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return for each token the projected mean of the values of the tokens up to it, by attention."""
        q_BHTE, k_BHTE, v_BHTE = (
            part_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part_BTD in self.qkv(x_BTD).chunk(3, dim=-1)
        )
        rate = self.dropout.p if self.training else 0.0
        mean_BHTE = functional.scaled_dot_product_attention(
            q_BHTE, k_BHTE, v_BHTE, dropout_p=rate, is_causal=True
        )
        y_BTD: Tensor = self.dropout(self.projection(mean_BHTE.transpose(1, 2).flatten(2)))
        return y_BTD


class Perceptron(nn.Sequential):
    """A hidden layer of 4 times the width with GELU."""

    def __init__(self, width: int, dropout: float, *, bias: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 4 * width, bias=bias)
        self.gelu = nn.GELU()
        self.projection = nn.Linear(4 * width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)


MODEL = GPT
