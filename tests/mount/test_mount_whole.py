"""Tests of `sage.reduce_model` in a custom loop: its own statements of docs/explanation/mounts.md."""
# B = batch

import copy
import io
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch
from gloo import processes
from mounted import Plain, Refuses, alone, loss, network, once, same
from torch import Tensor, nn

import sage
from sage.comm.wire import Wire
from sage.reduction.error_feedback import MemoryOptions
from sage.testing.harness import same_bits


@cache
def seen() -> list[dict[str, Any]]:
    """The results of each of two ranks, which start once."""

    def work(wire: Wire) -> dict[str, Any]:
        different = network()
        with torch.no_grad():
            for tensor in (*different.parameters(), *different.buffers()):
                tensor.add_(wire.rank)
        script = Plain(different, wire.rank, "exact")
        began = copy.deepcopy(different.state_dict())
        script.gradients(0)
        gradients = {name: p.grad.clone() for name, p in different.named_parameters() if p.grad is not None}
        script.mount.close()
        resumed = [Plain(network(), wire.rank, "accordion", density=0.05) for _ in range(3)]
        whole, first, second = resumed
        first.train(range(2), close=False)
        second.model.load_state_dict(first.model.state_dict())
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.mount.load_state_dict(copy.deepcopy(first.mount.state_dict()))
        goes_on = same(whole.train(range(4)), second.train(range(2, 4)))
        first.mount.close()
        return {"began": began, "gradients": gradients, "goes on": goes_on}

    return processes(2, work)


def test_all_ranks_begin_with_rank_0s_parameters_and_buffers() -> None:
    for view in seen():
        for name, tensor in network().state_dict().items():
            assert torch.equal(view["began"][name], tensor)


def test_every_rank_gets_the_mean_of_all_gradients() -> None:
    own = [network() for _ in range(2)]
    for rank, model in enumerate(own):
        once(model, rank, 0)
    for view in seen():
        for (name, p), q in zip(own[0].named_parameters(), own[1].parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            torch.testing.assert_close(view["gradients"][name], (p.grad + q.grad) / 2)


def test_a_mount_that_is_saved_and_loaded_continues_as_if_uninterrupted() -> None:
    assert all(view["goes on"] for view in seen())


@alone
def test_gradients_accumulate_over_backward_until_reduce() -> None:
    script, model = Plain(network(), 0, "exact"), network()
    script.mount.zero_grad()
    for step in range(2):
        loss(script.model, 0, step).backward()
        loss(model, 0, step).backward()
    script.mount.reduce()
    for p, q in zip(script.model.parameters(), model.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        torch.testing.assert_close(p.grad, q.grad)
    script.mount.close()


@alone
def test_a_sparse_embeddings_gradient_is_made_dense() -> None:
    def gradient(sparse: bool) -> Tensor:
        torch.manual_seed(0)
        embedding = nn.Embedding(9, 6, sparse=sparse)
        model = nn.Sequential(embedding, nn.Linear(6, 2))
        mount = sage.reduce_model(model, "topk", density=0.5)
        model(torch.tensor([1, 1, 4])).square().sum().backward()
        mount.reduce()
        mount.close()
        assert embedding.weight.grad is not None
        return embedding.weight.grad

    assert not gradient(sparse=True).is_sparse
    assert torch.equal(gradient(sparse=True), gradient(sparse=False))


@alone
def test_error_feedback_gets_its_options_and_the_learning_rates() -> None:
    model = nn.Linear(2, 1, bias=False)
    options: MemoryOptions = {"beta": 0.5, "lr_ratio": True}
    mount = sage.reduce_model(model, "topk", density=0.5, memory_options=options)

    def reduced(lr: float, gradient: list[float]) -> Any:
        mount.begin_step(lr)
        mount.zero_grad()
        (model.weight * torch.tensor([gradient])).sum().backward()
        mount.reduce()
        assert model.weight.grad is not None
        return model.weight.grad.view(-1).tolist()

    assert reduced(0.4, [3.0, 2.0]) == [3.0, 0.0]
    assert reduced(0.1, [1.0, 0.0]) == [0.0, 2.0 * 0.4 / 0.1 * 0.5]
    mount.close()


@alone
def test_squares_given_to_the_mount_determine_what_variance_sends() -> None:
    # Two samples of a batch: they agree on the first weight, and on the second they nearly cancel out.
    samples_ZN = torch.tensor([[1.0, 3.0], [1.0, -2.5]]) / 2

    def sent(tells: bool) -> Any:
        model = nn.Linear(2, 1, bias=False)
        mount = sage.reduce_model(model, "variance", values="fp32", alpha=1.0)
        (model.weight * samples_ZN.sum(0)).sum().backward()
        if tells:
            mount.observe({"weight": samples_ZN.square().sum(0, keepdim=True)})
        mount.reduce()
        mount.close()
        assert model.weight.grad is not None
        return model.weight.grad.view(-1).tolist()

    assert sent(tells=True) == [1.0, 0.0]
    assert sent(tells=False) == [0.0, 0.0]  # the whole gradient is one sample, and its square no more than v


@alone
def test_memories_and_squares_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"memory='residuals' of the memory: expected none, residual, mom"):
        sage.reduce_model(network(), "topk", memory="residuals")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"beta=1.5 of the memory: expected a number from 0 to 1"):
        sage.reduce_model(network(), "topk", memory_options={"beta": 1.5})
    with pytest.raises(ValueError, match=r"memory_options has bta; allowed are beta, gamma, lr_ratio, mom"):
        sage.reduce_model(network(), "topk", memory_options={"bta": 0.5})  # type: ignore[arg-type]
    mount = sage.reduce_model(nn.Linear(2, 1), "variance")
    with pytest.raises(ValueError, match=r"squares of bias have shape none; expected \(1,\)"):
        mount.observe({"weight": torch.ones(1, 2)})
    mount.close()


@alone
def test_a_model_of_two_dtypes_is_refused() -> None:
    model = network()
    model[8].bfloat16()
    with pytest.raises(ValueError, match=r"are torch.bfloat16 on cpu, torch.float32 on cpu.*sage.ddp_hook"):
        sage.reduce_model(model, "exact")


@alone
def test_an_empty_parameter_group_changes_nothing() -> None:
    with_one, without = Plain(network(), 0, "topk"), Plain(network(), 0, "topk")
    with_one.optimizer.add_param_group({"params": []})
    assert same(with_one.train(range(2)), without.train(range(2)))


@alone
def test_reducing_a_mean_again_is_refused() -> None:
    script = Plain(network(), 0, "topk", density=0.1)
    for step in range(2):
        script.gradients(step)
        before = copy.deepcopy(script.mount.state_dict())
        with pytest.raises(ValueError, match="the gradients have already been reduced: call"):
            script.mount.reduce()
        after = script.mount.state_dict()
        assert all(same_bits(before[name][key], after[name][key]) for name in before for key in before[name])
        script.optimizer.step()
    script.mount.close()


@alone
def test_gradients_that_backward_did_not_write_are_reduced() -> None:
    script = Plain(network(), 0, "exact")
    parameters = list(script.model.parameters())
    for write in ("set", "copied", "copied into .data", "none", "zero"):
        for p in parameters:
            assert p.grad is not None
            new = torch.ones_like(p)
            if write == "set":
                p.grad = new
            elif write == "copied":
                p.grad.copy_(new)
            elif write == "copied into .data":
                p.grad.data.copy_(new)
        if write in ("none", "zero"):
            script.optimizer.zero_grad(set_to_none=write == "none")
        script.mount.reduce()
        expected = 0 if write in ("none", "zero") else 1
        for p in parameters:
            assert p.grad is not None
            assert torch.equal(p.grad, torch.full_like(p, expected))
        script.optimizer.step()
    script.mount.close()


@alone
def test_an_optimiser_of_a_copy_of_the_model_is_refused() -> None:
    mounted = network()
    mount = sage.reduce_model(mounted, "topk", density=0.1)
    trained = copy.deepcopy(mounted)
    optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    once(trained, 0, 0)
    mount.reduce()
    with pytest.raises(ValueError, match="has a deepcopy of the parameter '0.weight', but the reducer"):
        optimizer.step()
    mount.close()
    optimizer.step()
    assert not hasattr(mounted, "_sage_copies")


@alone
def test_a_copy_of_a_mounted_model_can_be_kept_saved_and_trained() -> None:
    script = Plain(network(), 0, "topk", density=0.1)
    script.train(range(1), close=False)
    buffer = io.BytesIO()
    torch.save(script.model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert same(list(loaded.parameters()), list(script.model.parameters()))
    copied = copy.deepcopy(script.model)  # as in MAML's inner loop, or for a running average
    optimizer = torch.optim.SGD(copied.parameters(), 0.1)
    for step in range(2):
        once(copied, 0, step)
        optimizer.step()
        script.train([step], close=False)
    script.mount.close()


@alone
def test_an_error_of_a_reducer_is_raised_by_reduce() -> None:
    script = Plain(network(), 0, Refuses)
    script.gradients(0)
    with pytest.raises(ArithmeticError, match="no such gradient"):
        script.gradients(1)


def test_importing_sage_does_not_import_torch() -> None:
    message = "import sys, sage; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", message], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_sage_exports_no_other_names() -> None:
    with pytest.raises(AttributeError, match="module 'sage' has no attribute 'hook'"):
        sage.hook  # type: ignore[attr-defined]  # noqa: B018
