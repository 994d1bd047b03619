"""NeuMF, a recommender: matrix factorisation and a perceptron in parallel, combined by a final linear layer.

He, Liao, Zhang, Nie, Hu, Chua, "Neural Collaborative Filtering", 2017, https://arxiv.org/abs/1708.05031,
section 3.4. The model has 31,832,577 parameters on ML-20M (138,493 users, 26,744 items).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

# B = pairs of a user and an item, F = factors, I = input width of the perceptron


class NeuMF(nn.Module):
    """Score how likely a user is to choose an item, as a logit without sigmoid.

        logit = h . [p * q ; perceptron([p' ; q'])] + bias          (equation 12)

    where p and q are the factors of the user and the item, and p' and q' their features. The weights are
    initialised as in the authors' code without pre-training: embeddings Gaussian with standard deviation
    0.01, perceptron Glorot uniform, last layer LeCun uniform, biases 0.

    Args:
        factors: Width of the embeddings of the factorisation.
        mlp: Widths of the perceptron, starting with its input: user and item embedding, half the width each.
        dropout: Dropout rate after each layer of the perceptron.
    """

    def __init__(
        self,
        *,
        factors: int = 64,
        mlp: tuple[int, ...] = (256, 256, 128, 64),
        dropout: float = 0.5,
        num_users: int,
        num_items: int,
    ) -> None:
        super().__init__()
        if not mlp or mlp[0] % 2:
            raise ValueError(
                f"mlp is {tuple(mlp)}; allowed are one or more widths, the first of them even because "
                "user and item have half of it each, as in (256, 256, 128, 64)"
            )
        self.user_factors = nn.Embedding(num_users, factors)
        self.item_factors = nn.Embedding(num_items, factors)
        self.user_features = nn.Embedding(num_users, mlp[0] // 2)
        self.item_features = nn.Embedding(num_items, mlp[0] // 2)
        self.mlp = nn.Sequential()
        for width, out_width in pairwise(mlp):
            self.mlp.extend([nn.Linear(width, out_width), nn.ReLU(), nn.Dropout(dropout)])
        self.score = nn.Linear(factors + mlp[-1], 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.01)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.kaiming_uniform_(self.score.weight, nonlinearity="linear")  # LeCun uniform, as the gain is 1

    def forward(self, user_B: Tensor, item_B: Tensor) -> Tensor:
        factors_BF = self.user_factors(user_B) * self.item_factors(item_B)
        features_BI = torch.cat([self.user_features(user_B), self.item_features(item_B)], dim=-1)
        logit_B: Tensor = self.score(torch.cat([factors_BF, self.mlp(features_BI)], dim=-1)).squeeze(-1)
        return logit_B


MODEL = NeuMF
