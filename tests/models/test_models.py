"""Tests of the models: published parameter counts, gradients, refusals, and hidden states over time."""

import importlib
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sage.models
from sage.models.lstm import LSTM

# B = batch, C = channels, H, W = height and width, T = time steps, V = vocabulary

NAMES = sorted(path.stem for path in Path(sage.models.__path__[0]).glob("[!_]*.py"))
FACTS = {
    "num_classes": 5,
    "channels": 3,
    "image_size": 32,
    "vocab_size": 11,
    "block_size": 4,
    "num_users": 7,
    "num_items": 6,
    "num_features": 8,
    "num_bins": 41,
    "num_symbols": 9,
}
DIGITS = {"num_classes": 10, "channels": 1, "image_size": 8}
IMAGE_NAMES = ("densenet", "feedforward", "googlenet", "resnet", "resnet_v2", "senet", "vgg")

COUNTS: list[tuple[str, dict[str, Any], int]] = [
    ("resnet", {"num_classes": 10}, 11_173_962),
    ("resnet", {"num_classes": 100}, 11_220_132),
    ("resnet", {"depth": 20, "num_classes": 10}, 269_722),
    ("resnet", {"depth": 56, "num_classes": 10}, 853_018),
    ("resnet", {"depth": 110, "num_classes": 10}, 1_727_962),
    ("senet", {"num_classes": 10}, 11_260_354),
    ("senet", {"num_classes": 100}, 11_306_524),
    ("googlenet", {"num_classes": 10}, 6_166_250),
    ("googlenet", {"num_classes": 100}, 6_258_500),
    ("densenet", {"num_classes": 10}, 1_000_618),
    ("densenet", {"num_classes": 100}, 1_035_268),
    ("densenet", {"blocks": (2, 2, 2, 2), "num_classes": 10}, 59_218),
    ("vgg", {"num_classes": 10}, 14_728_266),
    ("imagenet", {"num_classes": 1000}, 25_557_032),
    ("imagenet", {"num_classes": 100}, 23_712_932),
    ("imagenet", {"num_classes": 20}, 23_549_012),
    ("imagenet", {"num_classes": 10}, 23_528_522),
    ("imagenet", {"net": "resnet101", "num_classes": 1000}, 44_549_160),
    ("imagenet", {"net": "resnet101", "num_classes": 100}, 42_705_060),
    ("imagenet", {"net": "resnet101", "num_classes": 20}, 42_541_140),
    ("imagenet", {"net": "resnet101", "num_classes": 10}, 42_520_650),
    ("imagenet", {"net": "vgg16", "num_classes": 1000}, 138_357_544),
    ("imagenet", {"net": "vgg16", "num_classes": 100}, 134_670_244),
    ("imagenet", {"net": "vgg16", "num_classes": 20}, 134_342_484),
    ("imagenet", {"net": "vgg16", "num_classes": 10}, 134_301_514),
    ("imagenet", {"net": "vgg19", "num_classes": 1000}, 143_667_240),
    ("imagenet", {"net": "vgg19", "num_classes": 100}, 139_979_940),
    ("imagenet", {"net": "vgg19", "num_classes": 20}, 139_652_180),
    ("imagenet", {"net": "vgg19", "num_classes": 10}, 139_611_210),
    ("imagenet", {"net": "vgg16_bn", "num_classes": 1000}, 138_365_992),
    ("imagenet", {"net": "vgg16_bn", "num_classes": 10}, 134_309_962),
    ("imagenet", {"net": "vgg19_bn", "num_classes": 1000}, 143_678_248),
    ("imagenet", {"net": "vgg19_bn", "num_classes": 10}, 139_622_218),
    ("imagenet", {"net": "alexnet", "num_classes": 1000}, 61_100_840),
    ("imagenet", {"net": "alexnet", "num_classes": 10}, 57_044_810),
    ("imagenet", {"net": "googlenet", "num_classes": 1000}, 6_624_904),
    ("imagenet", {"net": "inception_v3", "image_size": 299, "num_classes": 1000}, 23_834_568),
    ("imagenet", {"net": "googlenet", "auxiliary": True, "num_classes": 1000}, 13_004_888),
    (
        "imagenet",
        {"net": "inception_v3", "auxiliary": True, "image_size": 299, "num_classes": 1000},
        27_161_264,
    ),
    ("resnet_v2", {"num_classes": 1000}, 11_687_848),
    ("resnet_v2", {"num_classes": 100}, 11_226_148),
    ("resnet_v2", {"num_classes": 10}, 11_179_978),
    ("resnet_v2", {"stem": "3x3", "num_classes": 1000}, 11_680_040),
    ("resnet_v2", {"stem": "3x3", "num_classes": 100}, 11_218_340),
    ("resnet_v2", {"stem": "3x3", "num_classes": 10}, 11_172_170),
    ("resnet_v2", {"depth": 50, "num_classes": 1000}, 25_549_480),
    ("resnet_v2", {"depth": 50, "num_classes": 100}, 23_705_380),
    ("resnet_v2", {"depth": 50, "num_classes": 10}, 23_520_970),
    ("resnet_v2", {"depth": 101, "num_classes": 1000}, 44_541_608),
    ("resnet_v2", {"depth": 101, "num_classes": 100}, 42_697_508),
    ("resnet_v2", {"depth": 101, "num_classes": 10}, 42_513_098),
    ("feedforward", {"num_classes": 10}, 199_210),
    ("lstm", {"vocab_size": 28_869}, 28_949_319),
    ("lstm", {"vocab_size": 28_913}, 28_913 * 651 + 10_155_600),
    (
        "lstm",
        {"embedding": 1500, "hidden": 1500, "layers": 2, "tied": False, "vocab_size": 10_000},
        66_034_000,
    ),
    ("lstm", {"embedding": 700, "hidden": 700, "layers": 2, "tied": False, "vocab_size": 10_000}, 21_861_200),
    ("gpt", {"vocab_size": 65, "block_size": 64}, 804_096),
    ("gpt", {"vocab_size": 256, "block_size": 64}, 828_544),
    ("gpt", {"layers": 6, "heads": 6, "width": 384, "vocab_size": 65, "block_size": 256}, 10_745_088),
    (
        "gpt",
        {"layers": 6, "heads": 6, "width": 384, "bias": True, "vocab_size": 65, "block_size": 256},
        10_770_816,
    ),
    ("gpt", {"layers": 12, "heads": 12, "width": 768, "vocab_size": 50_304, "block_size": 1024}, 124_373_760),
    (
        "gpt",
        {"layers": 12, "heads": 12, "width": 768, "bias": True, "vocab_size": 50_257, "block_size": 1024},
        124_439_808,
    ),
    ("bert", {"vocab_size": 30_522, "num_classes": 4}, 4_386_436),
    ("bert", {"config": "mini", "vocab_size": 30_522, "num_classes": 4}, 11_171_588),
    ("bert", {"config": "small", "vocab_size": 30_522, "num_classes": 4}, 28_765_700),
    ("bert", {"config": "minilm-l6", "vocab_size": 30_522, "num_classes": 6}, 22_715_526),
    ("bert", {"config": "minilm-l6", "vocab_size": 30_522, "num_classes": 4}, 22_714_756),
    ("bert", {"config": "base", "vocab_size": 30_522, "num_classes": 4}, 109_485_316),
    ("bert", {"config": "base", "vocab_size": 30_522, "num_classes": 5}, 109_486_085),
    ("bert", {"config": "base", "vocab_size": 30_522, "num_classes": 6}, 109_486_854),
    ("bert", {"config": "base", "vocab_size": 21_128, "num_classes": 6}, 102_272_262),
    ("bert", {"config": "base-chinese", "vocab_size": 21_128, "num_classes": 4}, 102_270_724),
    ("bert", {"config": "base-chinese", "vocab_size": 500, "num_classes": 5}, 102_271_493),
    ("bert", {"config": "base-chinese", "vocab_size": 21_128, "num_classes": 6}, 102_272_262),
    *(
        ("deepspeech", {**options, "num_bins": 161, "num_symbols": 29}, count)
        for options, count in (
            ({}, 43_476_256),
            ({"hidden": 800}, 27_569_568),
            ({"rnn": "gru"}, 32_685_344),
            ({"bidirectional": True}, 86_618_400),
            ({"hidden": 256, "layers": 3}, 2_925_856),
            ({"hidden": 128, "layers": 2}, 1_128_480),
            ({"hidden": 128, "layers": 2, "rnn": "gru"}, 910_880),
        )
    ),
    ("logistic", {"num_features": 123}, 123),
    ("neumf", {"num_users": 138_493, "num_items": 26_744}, 31_832_577),
]


def build(name: str, facts: dict[str, int], **options: Any) -> nn.Module:
    """Create a model like the engine: its options by name, and the facts that it takes."""
    if name == "bert":
        pytest.importorskip("transformers", reason="the extra text is not installed")
    factory = importlib.import_module(f"sage.models.{name}").MODEL
    asked = inspect.signature(factory).parameters
    torch.manual_seed(0)
    model = factory(**options, **{fact: value for fact, value in facts.items() if fact in asked})
    assert isinstance(model, nn.Module)
    return model


def loss_of(model: nn.Module, name: str, facts: dict[str, int]) -> Tensor:
    """Run two examples forward, check the shape of the output, and return its mean square."""
    torch.manual_seed(1)
    if name == "lstm":
        logits, _ = model(torch.randint(facts["vocab_size"], (2, 3)))
        assert logits.shape == (2, 3, facts["vocab_size"])
    elif name == "gpt":
        logits = model(torch.randint(facts["vocab_size"], (2, 3)))
        assert logits.shape == (2, 3, facts["vocab_size"])
    elif name == "bert":
        logits = model(torch.tensor([[2, 5, 3, 0], [2, 6, 7, 3]]))
        assert logits.shape == (2, facts["num_classes"])
    elif name == "neumf":
        logits = model(torch.randint(facts["num_users"], (2,)), torch.randint(facts["num_items"], (2,)))
        assert logits.shape == (2,)
    elif name == "deepspeech":
        logits, frames_B = model(torch.randn(2, facts["num_bins"], 9), torch.tensor([9, 6]))
        assert logits.shape == (2, 5, facts["num_symbols"])
        assert frames_B.tolist() == [5, 3]
    elif name == "logistic":
        logits = model(torch.randn(2, facts["num_features"]))
        assert logits.shape == (2,)
    else:
        logits = model(torch.randn(2, facts["channels"], facts["image_size"], facts["image_size"]))
        assert logits.shape == (2, facts["num_classes"])
    loss: Tensor = logits.square().mean()
    return loss


def assert_all_gradients_are_finite(model: nn.Module) -> None:
    """Fail with the names of parameters whose gradient is missing or not finite."""
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()] == []


@pytest.mark.parametrize(("name", "arguments", "count"), COUNTS)
def test_the_number_of_parameters_is_as_published(name: str, arguments: dict[str, Any], count: int) -> None:
    if name == "bert":
        pytest.importorskip("transformers", reason="the extra text is not installed")
    with torch.device("meta"):
        model = importlib.import_module(f"sage.models.{name}").MODEL(**arguments)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_a_keyword_with_a_default_and_every_other_a_fact(name: str) -> None:
    factory = importlib.import_module(f"sage.models.{name}").MODEL
    for parameter in inspect.signature(factory).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.name in FACTS or parameter.default is not parameter.empty


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    model = build(name, FACTS)
    loss_of(model, name, FACTS).backward()
    assert_all_gradients_are_finite(model)


def test_shortcuts_without_parameters_propagate_gradients() -> None:
    model = build("resnet", FACTS, depth=20)
    loss_of(model, "resnet", FACTS).backward()
    assert_all_gradients_are_finite(model)


@pytest.mark.parametrize("name", [name for name in IMAGE_NAMES if name != "vgg"])
def test_models_for_images_accept_digits_of_8x8_grey_pixels(name: str) -> None:
    model = build(name, DIGITS)
    loss_of(model, name, DIGITS).backward()
    assert_all_gradients_are_finite(model)


def test_vgg_refuses_images_that_its_pooling_would_make_empty() -> None:
    with pytest.raises(ValueError, match="images have 8x8 pixels, .* use images of at least 32x32"):
        build("vgg", DIGITS)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("resnet", "18, 20, 56, 110"), ("resnet_v2", "18, 50, 101"), ("vgg", "11, 13, 16, 19")],
)
def test_a_wrong_depth_is_refused_with_the_allowed_ones(name: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"depth is 17; allowed are {allowed}"):
        build(name, FACTS, depth=17)


def test_a_shortcut_without_parameters_skips_pixels_and_adds_zeros() -> None:
    shortcut = importlib.import_module("sage.models.resnet").PadShortcut(2, 4, stride=2)
    x_BCHW = torch.randn(1, 2, 6, 6)
    y_BCHW = shortcut(x_BCHW)
    assert torch.equal(y_BCHW[:, :2], x_BCHW[:, :, ::2, ::2])
    assert y_BCHW.shape == (1, 4, 3, 3)
    assert not y_BCHW[:, 2:].any()


def test_a_dense_layer_keeps_the_channels_of_its_input_behind_the_new_ones() -> None:
    layer = importlib.import_module("sage.models.densenet").DenseLayer(5, growth=3)
    x_BCHW = torch.randn(2, 5, 4, 4)
    y_BCHW = layer(x_BCHW)
    assert y_BCHW.shape == (2, 8, 4, 4)
    assert torch.equal(y_BCHW[:, 3:], x_BCHW)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth": 0}, "growth is 0; allowed is a whole number of 1 or more"),
        ({"blocks": ()}, r"blocks is \[\]; allowed is a list of whole numbers of 1 or more"),
        ({"blocks": (2, 0)}, r"blocks is \[2, 0\]; allowed is a list"),
        (
            {"blocks": (1, 1, 1, 1, 1)},
            "8x8 pixels, but 5 blocks halve them 4 times: use images of at least 16x16",
        ),
    ],
)
def test_a_densenet_of_no_layers_or_of_too_small_images_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build("densenet", DIGITS, **options)


def test_a_feedforward_network_without_hidden_layers_is_linear() -> None:
    model = build("feedforward", DIGITS, hidden=())
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [(10, 64), (10,)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_chunks_with_a_carried_hidden_state_equal_one_long_text(layers: int, tied: bool) -> None:
    torch.manual_seed(0)
    model = LSTM(embedding=8, hidden=8, layers=layers, tied=tied, vocab_size=11).eval()
    tokens_BT = torch.randint(11, (3, 10))
    whole_BTV, (h, c) = model(tokens_BT)
    hidden, chunks = None, []
    for chunk_BT in tokens_BT.split(4, dim=1):  # 4, 4 and 2 steps
        logits_BTV, hidden = model(chunk_BT, hidden)
        chunks.append(logits_BTV)
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole_BTV)
    torch.testing.assert_close(hidden, (h, c))


def test_a_tied_decoder_stays_the_embedding_through_a_step() -> None:
    model = LSTM(embedding=8, hidden=8, vocab_size=11)
    loss_of(model, "lstm", FACTS).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert model.decoder.weight is model.embedding.weight


def test_a_tied_lstm_of_two_widths_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"embedding is 8 and hidden is 6: set them to the same value, or tied to false"
    ):
        LSTM(embedding=8, hidden=6, vocab_size=11)


def test_lstm_embeddings_are_initialised_within_the_given_range() -> None:
    model = LSTM(embedding=8, hidden=8, tied=False, init_range=0.01, vocab_size=11)
    for weight in (model.embedding.weight, model.decoder.weight):
        assert 0 < weight.abs().max() <= 0.01
    assert not model.decoder.bias.any()


@pytest.mark.parametrize("mlp", [(), (5, 4)])
def test_neumf_refuses_a_first_width_that_user_and_item_cannot_share(mlp: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the first of them even"):
        build("neumf", FACTS, mlp=mlp)


def test_neumf_scores_a_pair_independently_of_its_batch() -> None:
    model = build("neumf", FACTS).eval()
    user_B, item_B = torch.tensor([0, 3, 6]), torch.tensor([5, 1, 2])
    alone_B = torch.cat(
        [model(user, item) for user, item in zip(user_B.split(1), item_B.split(1), strict=True)]
    )
    torch.testing.assert_close(model(user_B, item_B), alone_B)


@pytest.mark.parametrize(
    ("layers", "width", "block_size"), [(4, 128, 64), (6, 384, 256)], ids=["char-cpu", "char"]
)
def test_the_first_loss_of_a_gpt_on_characters_is_within_a_tenth_of_the_logarithm_of_their_number(
    layers: int, width: int, block_size: int
) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        facts = {"vocab_size": 65, "block_size": block_size}
        model = build("gpt", facts, layers=layers, heads=layers, width=width)
        logits_BTV = model(torch.randint(65, (1, block_size)))
        # The expected loss if each next token is equally likely. The loss on a text depends on its tokens:
        # over 8 seeds it was between 0.001 and 0.129 above the logarithm at width 384.
        loss = (logits_BTV.logsumexp(-1) - logits_BTV.mean(-1)).mean().item()
        # Logits are products with embeddings of standard deviation .02, which add about .02^2 width / 2. The
        # logit of the token itself, whose embedding is in the sum, is about 1: it adds (e - 2) / 65.
        assert loss - math.log(65) == pytest.approx(0.02**2 * width / 2 + (math.e - 2) / 65, abs=0.015)
        assert loss == pytest.approx(math.log(65), abs=0.1)


def test_the_weights_of_a_gpt_are_initialised_as_published() -> None:
    model = build("gpt", {"vocab_size": 500, "block_size": 300}, layers=8, width=64, bias=True)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            expected = 0.02 / 4 if name.endswith("projection.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.05 * expected, name
        else:
            assert parameter.unique().tolist() == [0.0 if name.endswith("bias") else 1.0], name
    names = {
        name.partition(".")[2] for name, _ in model.named_parameters() if name.endswith("projection.weight")
    }
    assert names == {
        f"{i}.{part}.projection.weight" for i in range(8) for part in ("attention", "perceptron")
    }


def test_a_gpt_predicts_a_token_from_those_before_it_alone() -> None:
    model = build("gpt", FACTS).eval()
    tokens_BT = torch.tensor([[1, 2, 3, 4]])
    before_BTV = model(tokens_BT)
    for position in range(4):
        changed_BT = tokens_BT.clone()
        changed_BT[0, position] = 9
        differs_T = (model(changed_BT) != before_BTV).any(-1)[0]
        assert differs_T.tolist() == [at >= position for at in range(4)]


def test_the_order_of_earlier_tokens_changes_what_a_gpt_predicts() -> None:
    model = build("gpt", FACTS).eval()
    one, other = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    assert not torch.allclose(one[:, -1], other[:, -1], rtol=0, atol=1e-4)


def test_a_gpts_decoder_stays_its_embedding_through_a_step() -> None:
    model = build("gpt", FACTS)
    loss_of(model, "gpt", FACTS).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    state = model.state_dict()
    assert state["decoder.weight"].data_ptr() == state["embedding.weight"].data_ptr()
    assert "decoder.weight" not in dict(model.named_parameters())


def test_dropout_of_a_gpt_is_active_in_training_only() -> None:
    model = build("gpt", FACTS, dropout=0.5)
    tokens_BT = torch.tensor([[1, 2, 3]])
    assert not model(tokens_BT).equal(model(tokens_BT))
    model.eval()
    assert model(tokens_BT).equal(model(tokens_BT))


def test_a_gpt_refuses_a_width_that_its_heads_cannot_share() -> None:
    with pytest.raises(ValueError, match="width is 10 and heads is 4: set the width to a multiple of"):
        build("gpt", FACTS, width=10)
