"""An LSTM language model: word embedding, stacked LSTMs, and a decoder to the logits of the next word.

Zaremba, Sutskever, Vinyals, "Recurrent Neural Network Regularization", 2014, https://arxiv.org/abs/1409.2329:
dropout on the connections between layers, but not on the recurrent connections. Tied embeddings are those of
Press, Wolf, "Using the Output Embedding to Improve Language Models", 2017, https://arxiv.org/abs/1608.05859.

    workload          embedding     hidden    tied    parameters (V = words of the vocabulary)
    lstm-wikitext2          650    3 x  650    yes    651 V + 10,155,600
    lstm-ptb               1500    2 x 1500     no    66,034,000 at V = 10,000
    lstm-ptb-700            700    2 x  700     no    21,861,200 at V = 10,000
"""

from torch import Tensor, nn

# B = streams of text, T = time steps, V = words of the vocabulary, E = embedding, H = hidden, L = layers

Hidden = tuple[Tensor, Tensor]
"""The LSTM's state between two chunks of text: h_LBH and c_LBH."""


class LSTM(nn.Module):
    """A language model that passes its hidden state from one chunk of text to the next.

    The caller detaches the state to truncate backpropagation:

        >>> import torch
        >>> model = LSTM(vocab_size=10, embedding=4, hidden=4)
        >>> tokens_BT = torch.zeros(2, 3, dtype=torch.int64)
        >>> logits_BTV, (h_LBH, c_LBH) = model(tokens_BT)
        >>> logits_BTV, hidden = model(tokens_BT, (h_LBH.detach(), c_LBH.detach()))
        >>> logits_BTV.shape, h_LBH.shape
        (torch.Size([2, 3, 10]), torch.Size([3, 2, 4]))

    Args:
        dropout: Dropout rate on the embedding, between the layers and on the output of the last layer.
        tied: Use the embedding's weight as the decoder's weight.
        init_range: Embedding and decoder weights are initialised uniformly in +-init_range, the decoder's
            bias to 0, and the LSTM's weights as in PyTorch, uniformly in +-1/sqrt(hidden).
    """

    def __init__(
        self,
        *,
        embedding: int = 650,
        hidden: int = 650,
        layers: int = 3,
        dropout: float = 0.4,
        tied: bool = True,
        init_range: float = 0.1,
        vocab_size: int,
    ) -> None:
        super().__init__()
        if tied and embedding != hidden:
            raise ValueError(
                "a tied LSTM decodes with its embedding, so both must have the same width; embedding is "
                f"{embedding} and hidden is {hidden}: set them to the same value, or tied to false"
            )
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Embedding(vocab_size, embedding)
        # nn.LSTM applies dropout between layers, and warns if there is only one layer.
        self.lstm = nn.LSTM(
            embedding, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0
        )
        self.decoder = nn.Linear(hidden, vocab_size)
        if tied:
            self.decoder.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -init_range, init_range)
        nn.init.uniform_(self.decoder.weight, -init_range, init_range)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens_BT: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        embedded_BTE = self.dropout(self.embedding(tokens_BT))
        output_BTH, carried = self.lstm(embedded_BTE, hidden)
        logits_BTV = self.decoder(self.dropout(output_BTH))
        return logits_BTV, carried


MODEL = LSTM
