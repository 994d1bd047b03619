"""Recommendation: binary cross entropy, and hit rate and NDCG at 10."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sage.data.dataset import Batch

from .base import Task, stack

# B = pairs in the batch, U = users in the batch, C = candidate items per user, the held-out item first


class Recommend(Task):
    """Ranking of each user's held-out item among about a hundred sampled items: hit rate and NDCG at 10.

    He et al. 2017 (https://arxiv.org/abs/1708.05031, section 4.1): for the held-out item's rank r, counted
    from 0, the hit rate is the mean of [r < 10] and NDCG is the mean of [r < 10] / log2(r + 2). Ties count
    against the model: every candidate whose score is not strictly lower ranks before the held-out item, so a
    model with equal scores, or NaN, has a hit rate of 0. Masked duplicates are not counted.
    """

    metric = "hit_rate"
    better = {"hit_rate": "max", "ndcg": "max"}
    sum_names = ("hits", "ndcg", "count")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        user_B, item_B, label_B = batch
        return functional.binary_cross_entropy_with_logits(model(user_B, item_B), label_B)

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: Batch) -> Tensor:
        user_U, items_UC, duplicate_UC = batch
        user_UC = user_U[:, None].expand_as(items_UC)
        logits_UC = model(user_UC.flatten(), items_UC.flatten()).view(items_UC.shape)
        before_UC = ~(logits_UC < logits_UC[:, :1]) & ~duplicate_UC
        rank_U = before_UC[:, 1:].sum(1)
        hit_U = rank_U < 10
        ndcg_U = hit_U / (rank_U.double() + 2).log2()
        return stack(hit_U.sum(), ndcg_U.sum(), len(user_U))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        total = self._named(sums)
        return {"hit_rate": total["hits"] / total["count"], "ndcg": total["ndcg"] / total["count"]}


TASK = Recommend
