"""Logistic regression: one weight for each feature, at 0 initially, without a bias."""

from torch import Tensor, nn

# B = samples, F = features


class Logistic(nn.Module):
    """A linear function of the features, whose value is the logit of the label 1.

    It has as many parameters as the data has features; a bias is a feature that is always 1
    (`--data.bias`).
    """

    def __init__(self, *, num_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x_BF: Tensor) -> Tensor:
        logits_B1: Tensor = self.linear(x_BF)
        return logits_B1[:, 0]


MODEL = Logistic
