"""Tests of what each form of error feedback keeps of unsent elements."""
# N = elements of the flat vector

from typing import Any

import pytest
import torch
from torch import Tensor

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.gtopk import GTopK
from sage.reducers.threshold import Threshold
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.reduction.reducer import Reduced, Reducer
from sage.testing.harness import same_bits

N = 8


def feedback(density: float = 0.25, **options: Any) -> ErrorFeedback:
    """Two of eight elements are sent per step."""
    return ErrorFeedback(GTopK(density=density), Layout.of([("w", (N,))]), **options)


def alone(memory: ErrorFeedback, gradients: list[Tensor], lrs: list[float] | None = None) -> list[Reduced]:
    """The reductions of one rank's gradients, one after another."""

    def work(wire: Wire) -> list[Reduced]:
        seen = []
        for step, grad_N in enumerate(gradients):
            if lrs:
                memory.begin_step(lrs[step])
            reduced = memory(grad_N.clone(), wire)
            seen.append(Reduced(reduced.mean_N.clone(), reduced.sent, reduced.density, reduced.union_M))
        return seen

    return simulate(1, work)[0]


def gradient(step: int, rank: int = 0) -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(10 * step + rank))


def test_beta_weights_the_residual_and_gamma_the_gradient() -> None:
    memory = feedback(memory="residual", beta=0.5, gamma=2.0)
    (first,) = alone(memory, [gradient(0)])
    left_N = 2 * gradient(0) - first.mean_N
    (second,) = alone(memory, [gradient(1)])
    expected_N = 0.5 * left_N + 2 * gradient(1)
    assert second.sent is not None
    assert memory.residual_N is not None
    torch.testing.assert_close(second.mean_N + memory.residual_N, expected_N)
    assert set(second.sent.tolist()) == set(expected_N.abs().topk(2).indices.tolist())


def test_the_ratio_of_learning_rates_scales_only_the_residual() -> None:
    # An unsent element changes the weights as much as when it was kept: lr·residual is constant.
    still, scaled = (feedback(memory="residual", lr_ratio=on) for on in (False, True))
    for memory in (still, scaled):
        alone(memory, [gradient(0)], [0.1])
    assert still.residual_N is not None
    assert scaled.residual_N is not None
    before_N = scaled.residual_N.clone()
    still.begin_step(0.05)
    scaled.begin_step(0.05)
    torch.testing.assert_close(scaled.residual_N * 0.05, before_N * 0.1)
    assert same_bits(still.residual_N, before_N)


def test_neither_the_first_learning_rate_nor_one_of_zero_scales_anything() -> None:
    # A warm-up may begin at 0, and before the first step there was no learning rate at all.
    memory = feedback(memory="residual", lr_ratio=True)
    memory.begin_step(0.0)
    alone(memory, [gradient(0)])
    assert memory.residual_N is not None
    before_N = memory.residual_N.clone()
    memory.begin_step(0.1)
    memory.begin_step(0.1)
    assert same_bits(memory.residual_N, before_N)


def test_momentum_accumulates_and_is_cleared_where_elements_were_sent() -> None:
    memory = feedback(memory="momentum", momentum=0.5)
    u_N, v_N = torch.zeros(N), torch.zeros(N)
    for step in range(6):
        u_N = 0.5 * u_N + gradient(step)
        v_N = v_N + u_N
        sent = v_N.abs().topk(2).indices
        (reduced,) = alone(memory, [gradient(step)])
        torch.testing.assert_close(reduced.mean_N[sent], v_N[sent])
        assert int(reduced.mean_N.count_nonzero()) == 2
        u_N[sent], v_N[sent] = 0, 0
        torch.testing.assert_close(memory.residual_N, v_N)
        torch.testing.assert_close(memory.velocity_N, u_N)


def test_without_masking_momentum_is_not_cleared() -> None:
    masked, plain = (feedback(memory="momentum", masking=masking) for masking in (True, False))
    for memory in (masked, plain):
        (reduced,) = alone(memory, [gradient(0)])
    assert reduced.sent is not None
    assert masked.velocity_N is not None
    assert plain.velocity_N is not None
    assert not masked.velocity_N[reduced.sent].any()
    assert same_bits(plain.velocity_N, gradient(0))


def test_if_everything_is_sent_momentum_is_that_of_sgd() -> None:
    # Momentum correction (DGC, equation 4): if everything is sent and nothing masked, it is plain momentum.
    memory = feedback(density=1.0, memory="momentum", momentum=0.9, masking=False)
    u_N = torch.zeros(N)
    for step in range(4):
        u_N = 0.9 * u_N + gradient(step)
        (reduced,) = alone(memory, [gradient(step)])
        torch.testing.assert_close(reduced.mean_N, u_N)


def test_union_clears_the_residual_where_any_rank_has_sent() -> None:
    def work(wire: Wire) -> tuple[Tensor, Tensor, Tensor]:
        memory = feedback(memory="union")
        reduced = memory(gradient(0, wire.rank), wire)
        assert reduced.sent is not None
        assert memory.residual_N is not None
        return reduced.sent.clone(), memory.residual_N.clone(), gradient(0, wire.rank)

    ranks = simulate(3, work)
    union = sorted({at for sent, _, _ in ranks for at in sent.tolist()})
    assert len(union) > 2  # else this test would compare zeros
    for _, residual_N, grad_N in ranks:
        assert not residual_N[union].any()
        elsewhere = [at for at in range(N) if at not in union]
        assert same_bits(residual_N[elsewhere], grad_N[elsewhere])


@pytest.mark.parametrize("memory", ["none", "residual", "momentum", "union"])
def test_every_memory_resumes_from_its_state(memory: Any) -> None:
    options: dict[str, Any] = {"memory": memory, "lr_ratio": True}
    whole, first, second = (feedback(**options) for _ in range(3))
    # The learning rate falls at the resumed step: the previous one must be in the state.
    gradients, lrs = [gradient(step) for step in range(6)], [0.1, 0.1, 0.1, 0.05, 0.05, 0.02]
    expected = alone(whole, gradients, lrs)[3:]
    alone(first, gradients[:3], lrs[:3])
    second.load_state_dict(first.state_dict())
    for a, b in zip(expected, alone(second, gradients[3:], lrs[3:]), strict=True):
        assert same_bits(a.mean_N, b.mean_N)


def test_a_reducers_union_is_every_index_that_any_rank_has_sent() -> None:
    def work(wire: Wire) -> tuple[list[int], list[int]]:
        memory = ErrorFeedback(Threshold(threshold=1.0), Layout.of([("w", (N,))]))
        reduced = memory(gradient(1, wire.rank), wire)
        assert reduced.sent is not None
        assert reduced.union_M is not None
        return reduced.sent.tolist(), reduced.union_M.tolist()

    ranks = simulate(3, work)
    assert all(union == [at for sent, _ in ranks for at in sent] for _, union in ranks)


def sent(*at: float) -> Reduced:
    """A reducer's result whose indices are these."""
    return Reduced(torch.zeros(N), torch.tensor(at))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "NoneType, not a Reduced"),
        (torch.zeros(N), "Tensor, not a Reduced"),
        (Reduced(torch.zeros(N - 1)), r"a mean of \[7\], not of \[8\]"),
        (Reduced(torch.zeros(1, N)), r"a mean of \[1, 8\], not of \[8\]"),
        (Reduced(torch.zeros(N).double()), "a mean of torch.float64 on cpu, not of torch.float32 on cpu"),
        (Reduced(torch.zeros(N, device="meta")), "a mean of torch.float32 on meta, not of torch.float32 on"),
        (Reduced(torch.zeros(N), density=1.5), "density=1.5, not a share from 0 to 1"),
        (Reduced(torch.zeros(N), density=float("nan")), "density=nan, not a share from 0 to 1"),
        (sent(0, N), "sent with the index 8, not with indices from 0 to 7"),
        (sent(-1, 0), "sent with the index -1, not with indices from 0 to 7"),
        (sent(3, 1, 3), "sent with an index that occurs twice, where each is expected once"),
        (sent(0.0, 1.0), r"sent with \[2\] elements of torch.float32, not with one dimension of int32 or"),
        (Reduced(torch.zeros(N), torch.ones(N).bool()), r"sent with \[8\] elements of torch.bool, not with"),
        (Reduced(torch.zeros(N), union_M=torch.tensor([0, N])), "union_M with the index 8, not with indices"),
    ],
)
@pytest.mark.parametrize("memory", ["none", "residual"])
def test_an_invalid_return_value_of_a_reducer_is_named(returned: Any, message: str, memory: Any) -> None:
    class Faulty(Reducer):
        def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
            result: Reduced = returned
            return result

    reduce = ErrorFeedback(Faulty(), Layout.of([("w", (N,))]), memory=memory)
    with pytest.raises(ValueError, match=f"the reducer Faulty returned {message}"):
        alone(reduce, [gradient(0)])
