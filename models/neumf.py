"""NeuMF, a recommender: matrix factorisation and a perceptron side by side, mixed by one last layer.

He, Liao, Zhang, Nie, Hu, Chua, "Neural Collaborative Filtering", 2017, https://arxiv.org/abs/1708.05031,
section 3.4. 31,832,577 parameters on ML-20M (138,493 users, 26,744 items).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

# B = pairs of a user and an item, F = factors, I = the perceptron's input


class NeuMF(nn.Module):
    """Score how likely a user is to choose an item: a logit, no sigmoid.

        logit = h . [p * q ; perceptron([p' ; q'])] + bias          (equation 12)

    where p and q are the user's and the item's factors, p' and q' their features. The weights start as in the
    authors' own code where nothing is pre-trained: the embeddings Gaussian with deviation 0.01, the
    perceptron Glorot uniform, the last layer LeCun uniform, the biases 0.

    Args:
        factors: Width of the factorisation's embeddings.
        mlp: Widths of the perceptron, its input first: a user's and an item's embedding, half the width each.
        dropout: After each of the perceptron's layers.
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
                f"neumf's mlp is {tuple(mlp)}: user and item share its first width evenly, so give "
                "one or more widths, the first of them even, as in (256, 256, 128, 64)"
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
        nn.init.kaiming_uniform_(self.score.weight, nonlinearity="linear")  # at gain 1, LeCun's

    def forward(self, user_B: Tensor, item_B: Tensor) -> Tensor:
        factors_BF = self.user_factors(user_B) * self.item_factors(item_B)
        features_BI = torch.cat([self.user_features(user_B), self.item_features(item_B)], dim=-1)
        logit_B: Tensor = self.score(torch.cat([factors_BF, self.mlp(features_BI)], dim=-1)).squeeze(-1)
        return logit_B


MODEL = NeuMF
