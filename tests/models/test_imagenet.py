"""Tests of the networks for ImageNet: torchvision's, and gluon's ResNet v2."""

import math
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.nn import functional

from sage.models.imagenet import Net, imagenet
from sage.models.resnet_v2 import Block, ResNetV2

# B = images, K = classes

MIN_SIZES = {
    "alexnet": 63,
    "densenet121": 29,
    "googlenet": 15,
    "inception_v3": 75,
    "vgg11": 32,
    "vgg11_bn": 32,
}


@pytest.mark.parametrize("net", get_args(Net))
def test_a_network_returns_one_logit_for_each_class(net: Net) -> None:
    with torch.device("meta"):
        model = imagenet(net=net, num_classes=7, image_size=299)
        assert model.train()(torch.empty(2, 3, 299, 299)).shape == (2, 7)


@pytest.mark.parametrize(("net", "least"), MIN_SIZES.items())
def test_images_that_a_network_would_reduce_to_nothing_are_refused(net: Net, least: int) -> None:
    with pytest.raises(ValueError, match=f"{net} takes at least {least}x{least}: use larger images"):
        imagenet(net=net, num_classes=7, image_size=least - 1)
    with torch.device("meta"):
        model = imagenet(net=net, num_classes=7, image_size=least)
        assert model(torch.empty(2, 3, least, least)).shape == (2, 7)
        with pytest.raises(RuntimeError):
            model(torch.empty(2, 3, least - 1, least - 1))


@pytest.mark.parametrize(("net", "factors"), [("googlenet", [1, 0.3, 0.3]), ("inception_v3", [1, 0.4])])
def test_auxiliary_classifiers_return_logits_in_training_only(net: Net, factors: list[float]) -> None:
    with torch.device("meta"):
        model = imagenet(net=net, auxiliary=True, num_classes=7, image_size=299)
        x_BCHW = torch.empty(2, 3, 299, 299)
        returned = model.train()(x_BCHW)
        assert [factor for factor, _ in returned] == factors
        assert all(logits_BK.shape == (2, 7) for _, logits_BK in returned)
        assert model.eval()(x_BCHW).shape == (2, 7)


@pytest.mark.parametrize(
    ("net", "size", "said"),
    [
        (
            "resnet50",
            224,
            "resnet50 has no auxiliary classifiers: leave out --model.auxiliary, or choose one of",
        ),
        ("inception_v3", 298, "at least 299x299: use larger images, leave out --model.auxiliary"),
    ],
)
def test_auxiliary_classifiers_that_cannot_be_are_refused(net: Net, size: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        imagenet(net=net, auxiliary=True, num_classes=7, image_size=size)


def test_grey_images_are_refused_with_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"1 channels, but resnet50 takes 3: .* --data.rgb$"):
        imagenet(num_classes=10, channels=1)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (imagenet, {"net": "resnet18"}),
        (imagenet, {"net": "googlenet"}),
        (imagenet, {"net": "vgg16"}),
        (imagenet, {"net": "alexnet", "image_size": 64}),
        (imagenet, {"net": "densenet121"}),
        (ResNetV2, {"stem": "3x3"}),
        (ResNetV2, {"stem": "7x7"}),
    ],
)
def test_the_first_loss_is_the_logarithm_of_the_number_of_classes(
    model: Any, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    size = options.get("image_size", 32)
    x_BCHW, y_B = torch.randn(8, 3, size, size), torch.randint(100, (8,))
    with torch.no_grad():
        logits_BK = model(**options, num_classes=100)(x_BCHW)
    # Normal logits of variance v add v/2. The published initialisation of ResNet v2 has v of about 1, and
    # torchvision's of Inception v3 about 20 on small images, whose first loss is therefore no such logarithm.
    variance = logits_BK.var().item()
    assert variance < 1.2
    loss = functional.cross_entropy(logits_BK, y_B).item()
    assert loss == pytest.approx(math.log(100) + variance / 2, abs=0.3)


def test_a_block_adds_its_input_unchanged_and_projects_the_first_activation() -> None:
    torch.manual_seed(0)
    same, other = Block(4, 4, 1, False), Block(4, 8, 2, True)
    x_BCHW = torch.randn(2, 4, 6, 6)
    for block in (same, other):
        last = block.convolutions[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
    assert same(x_BCHW).equal(x_BCHW)  # no activation after the sum
    activated_BCHW = functional.relu(other.norms[0](x_BCHW))
    assert other.shortcut is not None
    assert other(x_BCHW).equal(functional.conv2d(activated_BCHW, other.shortcut.weight, stride=2))


@pytest.mark.parametrize(("stem", "side"), [("7x7", 8), ("3x3", 32)])
def test_the_7x7_stem_quarters_the_image_and_the_3x3_stem_keeps_it(stem: Any, side: int) -> None:
    with torch.device("meta"):
        model = ResNetV2(stem=stem, num_classes=10)
        assert model.stem(torch.empty(2, 3, 32, 32)).shape == (2, 64, side, side)


def test_convolutions_of_resnet_v2_have_no_bias_and_the_input_norm_no_weights() -> None:
    with torch.device("meta"):
        model = ResNetV2(depth=50, num_classes=10)
    assert [module.bias for module in model.modules() if isinstance(module, nn.Conv2d)] == [None] * 53
    assert list(model.input_norm.parameters()) == []


def test_weights_of_resnet_v2_are_initialised_as_published() -> None:
    torch.manual_seed(0)
    for init, gain in (("xavier", 1.0), ("msra", 2 / (1 + 0.25**2))):
        model = ResNetV2(init=init, num_classes=100)  # type: ignore[arg-type]
        weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        for weight in weights:
            fan_in, fan_out = weight[0].numel(), weight.shape[0] * weight[0, 0].numel()
            expected = math.sqrt(gain * 2 / (fan_in + fan_out))
            assert weight.std().item() == pytest.approx(expected, rel=0.05)
        assert not model.classifier.bias.any()
