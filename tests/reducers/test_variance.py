"""Tests of variance-based compression: the criterion, the code of 4 bits, and the squares from the engine."""
# N = elements of the flat vector, B = samples of a batch

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small import Points, small_network
from torch import Tensor, nn

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import Config
from sage.mount import WholeModel
from sage.records.progress import Display
from sage.records.record import NullRecorder
from sage.reducers.variance import Variance, exponents
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.reduction.reducer import Reduced
from sage.tasks.classify import Classify
from sage.tasks.language_model import LanguageModel
from sage.testing.harness import Case, same_bits, steps
from sage.train.evaluate import evaluate
from sage.train.loop import Training
from sage.train.mounted_whole import MountedWhole
from sage.train.squared_gradients import Squares
from sage.train.stop import Stop

SHAPES = (("a", (2,)), ("b", (3,)))


class Plain(ErrorFeedback):
    """One rank with error feedback and given squares."""

    def __init__(self, memory: Any = "residual", **options: Any) -> None:
        variance = Variance(**options)
        super().__init__(variance, Layout.of(SHAPES), memory=memory)
        self.variance = variance

    def step(self, grad: list[float], square: list[float] | None = None) -> Reduced:
        if square is not None:
            self.variance.observe(torch.tensor(square))
        (reduced,) = simulate(1, lambda wire: self(torch.tensor(grad), wire))
        assert isinstance(reduced, Reduced)
        return reduced


def sent(reduced: Reduced) -> list[int]:
    assert reduced.sent is not None
    return reduced.sent.tolist()


# The criterion.


@pytest.mark.parametrize("values", ["4bit", "fp32"])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_an_element_is_sent_once_its_square_exceeds_alpha_times_its_variance(
    values: str, alpha: float
) -> None:
    feedback = Plain(values=values, alpha=alpha)
    variance_N = feedback.variance.variance_N
    # r² is 1 each; v just below and just above r²/α; of nothing, nothing.
    reduced = feedback.step([1.0, -1.0, 0.0, 1.0, 0.0], [0.9 / alpha, 0.9 / alpha, 0.0, 1.1 / alpha, 1.0])
    assert sent(reduced) == [0, 1]
    assert reduced.mean_N.tolist() == [1.0, -1.0, 0.0, 0.0, 0.0]
    # Sent elements restart; of the others, r stays and v decays a little.
    assert feedback.residual_N is not None
    assert feedback.residual_N.tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]
    assert variance_N.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.999 * 1.1 / alpha, 0.999])
    # r² = 4 now exceeds α·v = 0.999·1.1 + α·0.5.
    assert sent(feedback.step([0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.5, 0.0])) == [3]


def test_zeta_decays_the_variance() -> None:
    feedback = Plain(zeta=0.5)
    for _ in range(3):
        feedback.step([0.0] * 5, [4.0] * 5)
    assert feedback.variance.variance_N.tolist() == [((4 / 2 + 4) / 2 + 4) / 2] * 5


def test_without_squares_the_gradient_counts_as_one_sample() -> None:
    feedback = Plain(zeta=1.0)
    # r² = v at first. Then (1 + 1)² > 1 + 1, but (1 − 1)² < 1 + 1.
    assert sent(feedback.step([1.0, 1.0, 0.0, 0.0, 0.0])) == []
    assert sent(feedback.step([1.0, -1.0, 0.0, 0.0, 0.0])) == [0]


def test_given_squares_count_for_one_step() -> None:
    feedback = Plain(zeta=1.0)
    assert sent(feedback.step([1.0] * 5, [0.0] * 5)) == [0, 1, 2, 3, 4]
    assert sent(feedback.step([1.0] * 5)) == []


def test_without_memory_the_variance_of_the_step_decides() -> None:
    feedback = Plain(memory="none")
    for _ in range(2):
        assert sent(feedback.step([1.0, 1.0, 0.0, 0.0, 0.0], [0.9, 1.1, 0.0, 0.0, 0.0])) == [0]
    assert sent(feedback.step([1.0, 1.0, 0.0, 0.0, 0.0])) == [0, 1]


# The code.


def test_values_are_rounded_to_the_nearer_power_of_two_of_their_layer_s_largest() -> None:
    feedback = Plain()
    # Of a the largest is 6, and e = 2: 6 is cut off at 4. Of b, e = 0: 0.74 and 0.76 part at 3/4.
    reduced = feedback.step([6.0, -3.1, 1.5, 0.74, -0.76], [0.0] * 5)
    assert reduced.mean_N.tolist() == [4.0, -4.0, 1.0, 0.5, -1.0]
    assert feedback.residual_N is not None
    assert feedback.residual_N.tolist() == pytest.approx([2.0, 0.9, 0.5, 0.24, 0.24])


def test_values_eight_powers_of_two_below_the_largest_are_not_sent() -> None:
    smallest, too_small = 2.0**-7, 2.0**-8
    gradient = [1.0, 0.76 * smallest, 1.0, 0.74 * smallest, too_small]
    kept, lost = Plain(), Plain(rounding="lost")
    for feedback in (kept, lost):
        reduced = feedback.step(gradient, [1e-12] * 5)
        assert sent(reduced) == [0, 1, 2]
        assert reduced.mean_N.tolist() == [1.0, smallest, 1.0, 0.0, 0.0]
    assert kept.residual_N is not None
    assert kept.residual_N.tolist() == pytest.approx([0.0, -0.24 * smallest, 0.0, 0.74 * smallest, too_small])
    assert kept.variance.variance_N.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.999e-12, 0.999e-12])
    # As published: r and v are set to zero whatever the rounding error.
    assert lost.residual_N is not None
    assert lost.residual_N.tolist() == lost.variance.variance_N.tolist() == [0.0] * 5
    assert not lost.variance.conserves


def test_a_word_is_28_bits_of_index_a_sign_and_three_of_the_exponent() -> None:
    reducer = Variance()
    reducer.bind(Layout.of([("a", (70_000,)), ("b", (5,))]))
    signal_N = torch.zeros(70_005)
    signal_N[3], signal_N[70_001], signal_N[70_004] = 1.0, 8.0, -0.25
    exponent_L = exponents(signal_N, [70_000, 5])
    assert exponent_L.tolist() == [0, 3]
    at_K, word_K = reducer.encode(signal_N, signal_N.nonzero().view(-1), exponent_L)
    assert at_K.tolist() == [3, 70_001, 70_004]
    assert [word & 0xFFFFFFFF for word in word_K.tolist()] == [3, 70_001, 0b1101 << 28 | 70_004]
    seen_K, values_K = reducer.decode(word_K, exponent_L)
    assert seen_K.tolist() == at_K.tolist()
    assert values_K.tolist() == [1.0, 8.0, -0.25]


def test_every_power_of_two_of_float32_is_exact_and_what_is_not_finite_is_infinite() -> None:
    reducer = Variance()
    reducer.bind(Layout.of([("a", (1,))]))
    for power in (-149, -127, -126, -1, 0, 1, 127):
        x_N = torch.tensor([math.ldexp(-1.0, power)])
        exponent_L = exponents(x_N, [1])
        _, word_K = reducer.encode(x_N, torch.tensor([0]), exponent_L)
        assert same_bits(reducer.decode(word_K, exponent_L)[1], x_N)
    for odd in (math.nan, math.inf):
        x_N = torch.tensor([odd])
        exponent_L = exponents(x_N, [1])
        _, word_K = reducer.encode(x_N, torch.tensor([0]), exponent_L)
        assert reducer.decode(word_K, exponent_L)[1].tolist() == [math.inf]


def test_the_payload_bytes_equal_those_counted_by_hand() -> None:
    # conv, wide and bias; of each rank everything above 0 is sent, as there is neither memory nor a variance.
    def gradient(rank: int, step: int) -> Tensor:
        return (torch.arange(1023) < 3 + 2 * rank).float()

    seen = steps(Case(Variance, {}, 2, memory="none"), gradient, count=1)
    assert [step.payload for (step,) in seen] == [
        {"values": 4 * count, "scales": 6, "sizes": 16} for count in (3, 5)
    ]


def test_more_elements_than_28_bits_can_index_are_refused() -> None:
    layout = Layout.of([("w", (2**28 + 1,))])
    with pytest.raises(ValueError, match=r"268,435,457 elements in one vector; .* at most 268,435,456"):
        Variance().bind(layout)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"alpha": 0.0}, r"alpha=0\.0: expected a finite number above 0"),
        ({"zeta": 1.5}, r"zeta=1\.5: expected a number above 0 and at most 1"),
        ({"values": "8bit"}, r"values='8bit': expected 4bit, fp32 or fp16"),
        ({"rounding": "up"}, r"rounding='up': expected kept or lost"),
        (
            {"rounding": "lost", "values": "fp16"},
            r"rounding='lost' with values='fp16': expected values='4bit'",
        ),
        ({"squares": "all"}, r"squares='all': expected split or per-sample"),
        ({"sub_batches": 0}, r"sub_batches=0: expected 1 part or more"),
    ],
)
def test_an_option_out_of_range_is_refused_with_the_allowed_range(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Variance(**options)


# Squares from the engine.


class RecordsSquares(Variance):
    """Records the given squares and the gradient of the step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.observed: list[tuple[Tensor, Tensor]] = []

    def observe(self, square_N: Tensor) -> None:
        self._heard = square_N.clone()

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        self.observed.append((self._heard, grad_N.clone()))
        return Reduced(wire.mean(grad_N))


def training(tmp_path: Path, wire: Wire, reducer: Variance, **options: Any) -> Training:
    common = {"batch_size": 8, "min_compress": 0, "memory": "none"}
    parts = {"workload": "points", "task": "classify", "model": "feedforward", "data": "digits"}
    return Training(
        Config(**{**parts, **common, "world_size": wire.world_size, **options}),
        wire,
        model=small_network(norm=options.get("model_norm", False)),
        data=Points(),
        task=Classify(Points.facts),
        reducer=reducer,
        folder=tmp_path,
        record=NullRecorder(),
        display=Display("", enabled=False),
        stop=Stop(),
    )


def one_by_one(batches: list[Any], parts: int | None) -> tuple[Tensor, Tensor]:
    """The squares and the gradient of the first step, by a plain loop."""
    model, task = small_network(), Classify(Points.facts)
    samples = [
        (x, y)
        for x_BF, y_B in batches
        for x, y in zip(
            x_BF.tensor_split(parts or len(y_B)), y_B.tensor_split(parts or len(y_B)), strict=True
        )
    ]
    total = sum(len(y) for _, y in samples)
    square, gradient = [], []
    for x, y in samples:
        model.zero_grad()
        task.loss(model, (x, y)).backward()
        own_N = torch.cat([p.grad.view(-1) for p in model.parameters() if p.grad is not None])
        gradient.append(own_N * len(y) / total)
        square.append(gradient[-1].square())
    return torch.stack(square).sum(0), torch.stack(gradient).sum(0)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"sub_batches": 1}, 1),
        ({"sub_batches": 3}, 3),
        ({"sub_batches": 100}, None),
        ({"squares": "per-sample"}, None),
    ],
)
def test_the_squares_equal_those_of_a_loop_over_the_samples(
    tmp_path: Path, options: dict[str, Any], parts: int | None, accumulate: int
) -> None:
    def work(wire: Wire) -> list[Tensor]:
        reducer = RecordsSquares(**options)
        run = training(tmp_path, wire, reducer, accumulate=accumulate)
        batches = next(run.rest_of_epoch())
        run.take_step(batches)
        ((square_N, grad_N),) = reducer.observed
        return [square_N, grad_N, *one_by_one(batches, parts)]

    for square_N, grad_N, expected_square_N, expected_N in simulate(2, work):
        assert torch.allclose(grad_N, expected_N, rtol=1e-4, atol=1e-7)
        assert torch.allclose(square_N, expected_square_N, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("squares", ["split", "per-sample"])
def test_the_squares_are_clipped_as_the_gradient_is(tmp_path: Path, squares: str) -> None:
    def observed(**options: Any) -> tuple[Tensor, Tensor]:
        reducer = RecordsSquares(squares=squares)

        def work(wire: Wire) -> None:
            run = training(tmp_path, wire, reducer, **options)
            run.take_step(next(run.rest_of_epoch()))

        simulate(1, work)
        return reducer.observed[0]

    (square_N, grad_N), (clipped_square_N, clipped_N) = observed(), observed(clip_local=1e-3)
    factor = float(clipped_N.norm() / grad_N.norm())
    assert factor < 0.1
    assert torch.allclose(clipped_square_N, square_N * factor**2, rtol=1e-4, atol=1e-14)


def test_clipping_a_gradient_of_zeros_leaves_the_squares_valid() -> None:
    model, reducer = small_network(), RecordsSquares()
    squares = Squares(model, Classify(Points.facts), WholeModel(model, reducer))
    squares.rescale(torch.zeros(()) / torch.zeros(()))
    squares.pass_to_reducer()
    assert not reducer._heard.any()


def test_the_squares_are_divided_by_the_square_of_the_loss_scale(tmp_path: Path) -> None:
    def observed(scale: float) -> tuple[Tensor, Tensor]:
        reducer = RecordsSquares()

        def work(wire: Wire) -> None:
            run = training(tmp_path, wire, reducer)
            run.loss_scale.enabled = True
            run.loss_scale.scale.fill_(scale)
            run.take_step(next(run.rest_of_epoch()))

        simulate(1, work)
        return reducer.observed[0]

    for plain_N, scaled_N in zip(observed(1.0), observed(1024.0), strict=True):
        assert torch.allclose(plain_N, scaled_N, rtol=1e-4, atol=1e-9)


def test_small_tensors_that_are_sent_dense_have_no_squares(tmp_path: Path) -> None:
    reducer = RecordsSquares()

    def work(wire: Wire) -> None:
        run = training(tmp_path, wire, reducer, min_compress=20)
        run.take_step(next(run.rest_of_epoch()))

    simulate(1, work)
    ((square_N, grad_N),) = reducer.observed
    assert square_N.shape == grad_N.shape == (16 * 6 + 16 * 3,)
    assert bool((square_N > 0).any())


@pytest.mark.parametrize("name", ["variance", "variance+efsign"])
def test_training_with_squares_learns_and_a_hybrid_gets_them_too(tmp_path: Path, name: str) -> None:
    def work(wire: Wire) -> tuple[float, float]:
        reducer = registry.load("reducers", name)()
        run = training(tmp_path, wire, reducer, memory="residual", lr=0.05, epochs=30.0)
        assert isinstance(run.mount, MountedWhole)
        assert run.mount.squares is not None
        before = evaluate(run).metrics["loss"]
        for _ in range(30):
            for batches in run.rest_of_epoch():
                run.take_step(batches)
        return before, evaluate(run).metrics["loss"]

    for before, after in simulate(2, work):
        assert after < 0.7 * before


def test_a_batch_that_cannot_be_split_is_refused_with_an_alternative() -> None:
    def squares(reducer: Variance, *, norm: bool = False, task: Any = Classify, amp: bool = False) -> Squares:
        model: nn.Module = small_network(norm=norm)
        return Squares(model, task(Points.facts), WholeModel(model, reducer), amp=amp)

    squares(Variance(), norm=True)
    squares(Variance(sub_batches=1), task=LanguageModel)
    squares(Variance(), amp=True)
    with pytest.raises(
        ValueError, match="the statistics of 1 are those of the whole batch: use --squares split"
    ):
        squares(Variance(squares="per-sample"), norm=True)
    with pytest.raises(ValueError, match="--amp is set: use --squares split"):
        squares(Variance(squares="per-sample"), amp=True)
    for reducer in (Variance(squares="per-sample"), Variance(sub_batches=4)):
        with pytest.raises(ValueError, match=r"batches continue each other .* --sub-batches 1"):
            squares(reducer, task=LanguageModel)
