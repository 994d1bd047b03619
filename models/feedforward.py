"""A fully connected network with ReLU: 784-200-200-10 on MNIST.

The "2NN" of McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
2017, https://arxiv.org/abs/1602.05629. It has 199,210 parameters for the 28x28 images of MNIST.
"""

from torch import Tensor, nn

# B = images, C = channels, H, W = height and width, K = classes


class FeedForward(nn.Module):
    """Linear layers with ReLU between them, applied to the flattened image.

    Args:
        hidden: Widths of the hidden layers; without any, the model is logistic regression.
    """

    def __init__(
        self,
        *,
        hidden: tuple[int, ...] = (200, 200),
        num_classes: int,
        channels: int = 1,
        image_size: int = 28,
    ) -> None:
        super().__init__()
        width = channels * image_size**2
        self.layers = nn.Sequential(nn.Flatten())
        for out_width in hidden:
            self.layers.extend([nn.Linear(width, out_width), nn.ReLU()])
            width = out_width
        self.layers.append(nn.Linear(width, num_classes))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.layers(x_BCHW)
        return logits_BK


MODEL = FeedForward
