"""Tests of the tasks' losses and metrics against values computed by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sage import registry
from sage.datasets.breast_cancer import BreastCancer
from sage.models.logistic import Logistic
from sage.models.lstm import LSTM
from sage.models.neumf import NeuMF
from sage.tasks import Task
from sage.tasks.classify import Classify
from sage.tasks.convex import Convex
from sage.tasks.language_model import LanguageModel
from sage.tasks.recommend import Recommend


class Scores(nn.Module):
    """A recommender with given logits, one per user and item."""

    def __init__(self, scores: list[list[float]]) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)

    def forward(self, user_B: Tensor, item_B: Tensor) -> Tensor:
        return self.scores[user_B, item_B]


def language_model() -> tuple[LanguageModel, LSTM]:
    torch.manual_seed(0)
    task = LanguageModel({"vocab_size": 11})
    return task, LSTM(vocab_size=11, embedding=8, hidden=8, layers=2, dropout=0.0)


def text(num_steps: int) -> Tensor:
    return torch.randint(11, (3, num_steps + 1), generator=torch.Generator().manual_seed(1))


def evaluate(task: Task, model: nn.Module, *batches: tuple[Tensor, ...]) -> dict[str, float]:
    task.begin_evaluation()
    return task.metrics(torch.stack([task.sums(model, batch) for batch in batches]).sum(0))


def rank(scores: list[float], duplicate: list[bool] | None = None) -> dict[str, float]:
    num = len(scores)
    duplicates = torch.tensor([duplicate or [False] * num])
    batch = (torch.tensor([0]), torch.arange(num)[None], duplicates)
    return evaluate(Recommend({}), Scores([scores]), batch)


@pytest.mark.parametrize("name", registry.names("tasks"))
def test_every_task_states_for_every_metric_which_direction_is_better(name: str) -> None:
    facts = {"num_classes": 10, "character_level": 1, "l2": 0.1, "optimum": 0.2, "num_symbols": 29}
    task = registry.load("tasks", name)(facts)
    metrics = task.metrics(torch.ones(len(task.sum_names), dtype=torch.float64))
    assert set(metrics) == set(task.better)
    assert task.metric in metrics
    assert set(task.better.values()) <= {"min", "max"}


def test_accuracy_is_the_share_of_images_with_their_class_first_or_in_the_first_five() -> None:
    logits_BK = torch.tensor([[6.0, 5, 4, 3, 2, 1]] * 4)
    y_B = torch.tensor([0, 0, 4, 5])
    metrics = evaluate(Classify({"num_classes": 6}), nn.Identity(), (logits_BK, y_B))
    assert (metrics["accuracy"], metrics["top5"]) == (0.5, 0.75)
    loss = -logits_BK.double().log_softmax(1)[range(4), y_B].mean().item()
    assert metrics["loss"] == pytest.approx(loss)


def test_top_five_of_five_classes_is_not_reported() -> None:
    metrics = evaluate(Classify({"num_classes": 5}), nn.Identity(), (torch.eye(5), torch.arange(5)))
    assert set(metrics) == {"accuracy", "loss"}


def test_losses_of_auxiliary_classifiers_are_added_with_their_factors() -> None:
    torch.manual_seed(0)
    y_B, main_BK, other_BK = torch.randint(7, (10,)), torch.randn(10, 7), torch.randn(10, 7)

    class Two(nn.Module):
        def forward(self, x_BK: Tensor) -> tuple[tuple[float, Tensor], ...]:
            return (1.0, x_BK), (0.25, other_BK)

    task, entropy = Classify({"num_classes": 7}), functional.cross_entropy
    loss = task.loss(Two(), (main_BK, y_B))
    assert loss.item() == pytest.approx((entropy(main_BK, y_B) + 0.25 * entropy(other_BK, y_B)).item())


def test_metrics_are_means_over_samples_and_not_over_batches() -> None:
    task, x_BK, y_B = Classify({"num_classes": 7}), torch.randn(10, 7), torch.randint(7, (10,))
    whole = evaluate(task, nn.Identity(), (x_BK, y_B))
    parts = evaluate(task, nn.Identity(), (x_BK[:7], y_B[:7]), (x_BK[7:], y_B[7:]))
    assert parts == pytest.approx(whole)
    assert task.loss(nn.Identity(), (x_BK, y_B)).item() == pytest.approx(whole["loss"])


def test_two_chunks_with_a_carried_hidden_state_equal_one_text() -> None:
    task, model = language_model()
    words = text(10)
    whole = task.loss(model, (words[:, :-1], words[:, 1:]))
    task.begin_epoch()
    first = task.loss(model, (words[:, :5], words[:, 1:6]))
    second = task.loss(model, (words[:, 5:10], words[:, 6:]))
    torch.testing.assert_close((first + second) / 2, whole)
    assert not any(part.requires_grad for part in task.hidden)


def test_perplexity_of_a_text_in_chunks_is_that_of_the_whole_text() -> None:
    task, model = language_model()
    words = text(9)
    whole = evaluate(task, model, (words[:, :-1], words[:, 1:]))
    chunks = evaluate(task, model, (words[:, :6], words[:, 1:7]), (words[:, 6:9], words[:, 7:]))
    assert chunks == pytest.approx(whole)
    assert whole["perplexity"] == pytest.approx(math.exp(whole["loss"]))


def test_an_evaluation_does_not_change_the_hidden_state_of_training() -> None:
    task, model = language_model()
    words = text(10)
    task.loss(model, (words[:, :5], words[:, 1:6]))
    state = task.state_dict()
    evaluate(task, model, (words[:, :-1], words[:, 1:]))
    assert task.state_dict()["hidden"] is state["hidden"]


def test_a_language_model_resumes_in_the_middle_of_an_epoch_bitwise_identically() -> None:
    task, model = language_model()
    words = text(10)
    task.loss(model, (words[:, :5], words[:, 1:6]))
    resumed = LanguageModel({"vocab_size": 11})
    resumed.load_state_dict(task.state_dict())
    batch = (words[:, 5:10], words[:, 6:])
    assert torch.equal(resumed.loss(model, batch), task.loss(model, batch))
    assert LanguageModel({}).state_dict() == {"hidden": None}


def test_a_perplexity_too_large_for_a_float_is_infinite() -> None:
    metrics = LanguageModel({}).metrics(torch.tensor([1e4, 1.0], dtype=torch.float64))
    assert metrics == {"perplexity": math.inf, "loss": 1e4}
    assert math.isnan(LanguageModel({}).metrics(torch.tensor([math.nan, 1.0]))["perplexity"])


class Independent(nn.Module):
    """A language model without a hidden state: the logits of a token depend on it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 11)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self.table(tokens_BT)
        return logits_BTV


def test_windows_are_independent_of_each_other() -> None:
    facts = {"vocab_size": 11, "block_size": 5}
    words = text(10)
    first, second = (words[:, :5], words[:, 1:6]), (words[:, 5:10], words[:, 6:])
    for model in (Independent(), language_model()[1]):
        task = LanguageModel(facts)
        assert not task.continues
        alone = task.loss(model, second)
        task.loss(model, first)
        assert torch.equal(task.loss(model, second), alone)
        assert task.state_dict() == {"hidden": None}
        whole = evaluate(task, model, first, second)
        assert evaluate(task, model, second, first) == pytest.approx(whole)
        logits_BTV = torch.cat([task._predict(model, tokens_BT, None)[0] for tokens_BT, _ in (first, second)])
        targets_BT = torch.cat([first[1], second[1]])
        mean = -logits_BTV.log_softmax(-1).gather(-1, targets_BT[..., None]).mean()
        assert whole["loss"] == pytest.approx(mean.item())
    assert LanguageModel({"vocab_size": 11}).continues


def test_bits_per_character_are_the_loss_in_bits_if_tokens_are_characters() -> None:
    sums = torch.tensor([6 * math.log(2), 3.0], dtype=torch.float64)
    metrics = LanguageModel({"character_level": 1}).metrics(sums)
    assert metrics == pytest.approx({"loss": 2 * math.log(2), "perplexity": 4, "bits_per_character": 2})
    assert "bits_per_character" not in LanguageModel({}).metrics(sums)


def test_hit_rate_and_ndcg_follow_the_rank_of_the_held_out_item() -> None:
    rivals = [float(i) for i in range(20)]
    assert rank([99.0, *rivals]) == {"hit_rate": 1, "ndcg": 1}
    assert rank([18.5, *rivals]) == {"hit_rate": 1, "ndcg": pytest.approx(1 / math.log2(3))}
    assert rank([10.5, *rivals]) == {"hit_rate": 1, "ndcg": pytest.approx(1 / math.log2(11))}
    assert rank([9.5, *rivals]) == {"hit_rate": 0, "ndcg": 0}


@pytest.mark.parametrize("score", [0.0, math.nan])
def test_a_model_with_equal_scores_has_a_hit_rate_of_0(score: float) -> None:
    assert rank([score] * 11) == {"hit_rate": 0, "ndcg": 0}


def test_masked_duplicates_do_not_count_as_candidates() -> None:
    assert rank([0.0, *[1.0] * 12], [False] * 4 + [True] * 9) == {"hit_rate": 1, "ndcg": 1 / math.log2(5)}


def test_hits_are_averaged_over_users() -> None:
    scores = [[5.0, *[1.0] * 10], [0.0, *[1.0] * 10]]
    batch = (torch.tensor([0, 1]), torch.arange(11).expand(2, 11), torch.zeros(2, 11, dtype=torch.bool))
    assert evaluate(Recommend({}), Scores(scores), batch) == {"hit_rate": 0.5, "ndcg": 0.5}


def test_the_loss_of_a_recommender_is_the_cross_entropy_of_its_logits() -> None:
    torch.manual_seed(0)
    model = NeuMF(num_users=4, num_items=5, factors=2, mlp=(4, 2), dropout=0.0)
    batch: Any = (torch.tensor([0, 3]), torch.tensor([4, 1]), torch.tensor([1.0, 0.0]))
    p_B = model(*batch[:2]).sigmoid()
    loss = Recommend({}).loss(model, batch)
    torch.testing.assert_close(loss, -(p_B[0].log() + (1 - p_B[1]).log()) / 2)
    loss.backward()


def test_the_gap_of_a_convex_problem_is_zero_at_its_optimum_and_above_elsewhere() -> None:
    data = BreastCancer(Path("unused"))
    task, model = Convex(data.facts), Logistic(num_features=31)
    batches = list(data.test_batches(rank=0, world_size=1, batch_size=100))
    start = evaluate(task, model, *batches)
    assert start["loss"] == pytest.approx(math.log(2))
    assert start["gap"] == pytest.approx(math.log(2) - data.facts["optimum"])
    solver = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = task.loss(model, (data.x_NF, data.y_N))
        loss.backward()
        return loss

    solver.step(closure)
    end = evaluate(task, model, *batches)
    assert end["gap"] == pytest.approx(0, abs=1e-6)
    assert end["accuracy"] > 0.98
    assert end["loss"] == pytest.approx(task.loss(model, (data.x_NF, data.y_N)).item(), abs=1e-6)


def test_a_convex_problem_needs_its_optimum() -> None:
    with pytest.raises(ValueError, match="the task Convex needs optimum, which the data set does not give"):
        Convex({"l2": 0.1})
