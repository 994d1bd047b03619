"""Dion: orthonormal updates of matrices from a low-rank factorisation of every rank's momentum."""
# m, n = rows and columns of a matrix, r = rank of its factors, D = elements that are sent dense
# F = elements of the factors of all matrices together

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw

from sage.comm.wire import Wire
from sage.optim.adam import adam_defaults
from sage.optim.base import ReducingOptimizer
from sage.reduction.lowrank import by_shape, unflatten
from sage.rng import generator
from sage.timing import phase

Group = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Factorised:
    """A matrix that Dion updates, with its state."""

    at: int
    """Its number among the parameters."""
    is_dense: bool
    """Whether its gradient is reduced, because the factors would be larger."""
    momentum: Tensor
    """M (m × n); differs between ranks unless the matrix is dense."""
    q: Tensor
    """Q (n × r), the same on all ranks."""


class Dion(ReducingOptimizer):
    """Distributed orthonormal updates: ranks exchange low-rank factors of their momenta, not gradients.

    Ahn, Xu et al. 2025, https://arxiv.org/abs/2504.05295; the authors' code is
    https://github.com/microsoft/dion at 0a059a4, `dion/dion_simple.py`. With this rank's gradient G of a
    matrix X (m × n), learning rate lr, momentum μ and weight decay w:

        M ← M + G
        P = orth(mean of M·Q)                (m × r, by QR)
        R = mean of Mᵀ·P                     (n × r)
        M ← M − (1 − μ) P·Rᵀ
        Q ← R, each column divided by its length
        X ← (1 − lr w) X − lr √(m/n) P·Qᵀ

    The means are over ranks. The momentum M differs between ranks, P, Q and X do not. Q begins as random
    numbers that are the same on all ranks. One step of the power iteration is done per step, from the last Q.

    r = ⌈`rank_fraction`·min(m, n)⌉. A matrix with r·(m + n) ≥ m·n is updated by the same rule, but its
    gradient is reduced: its M is then the same on all ranks, and nothing else is sent. This is the case at
    the default `rank_fraction` of 1, the authors' default. torch's AdamW updates the parameters of groups
    that have "algorithm": "adamw", and those that are no matrices; embeddings and the head should be in such
    a group.

    A step is two all-reduces. Payload bytes per rank: 4·r·(m + n) of a factorised matrix, 4 per element of
    the other parameters. Memory per rank: m·n + n·r numbers of a matrix, two per element of AdamW.

    `own_state_dict()` has the momenta that differ between ranks, with which a script continues to the bit.
    They are in `state_dict()` too. Call `synchronize_for_checkpoint()` before you save that, as DCP does: it
    is then the same on all ranks, and of use for any number of ranks.

    Args:
        params: Parameters or groups of them, as for every optimiser of torch; float32.
        lr: The learning rate of groups that have none of their own.
        momentum: μ, at least 0 and below 1.
        rank_fraction: Rank of the factors as a fraction of the smaller dimension, in (0, 1].
        weight_decay: Decoupled weight decay w of groups that have none of their own.
        betas, eps: Options of AdamW, as torch names them; eps is also added to the lengths of R's columns.
        seed: Seed of the first Q.
        group, timeout, guard, wire: As in `ReducingOptimizer`.

    Raises:
        ValueError: if an option is out of range, no parameter is a matrix for Dion, or as in
            `ReducingOptimizer`.
    """

    name = "dion"
    own_is_averaged = True

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        momentum: float = 0.95,
        rank_fraction: float = 1.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
        timeout: float = 300.0,
        guard: bool = False,
        wire: Wire | None = None,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum!r}: expected 0 or more, and less than 1")
        if not 0 < rank_fraction <= 1:
            raise ValueError(f"rank_fraction={rank_fraction!r}: expected a fraction above 0, at most 1")
        groups = split_groups(params)
        if not any(each["algorithm"] == "dion" for each in groups):
            raise ValueError(
                "Dion has no matrix to update: every parameter is in a group of AdamW, or has another number "
                "of dimensions than two; use AdamW"
            )
        super().__init__(
            groups,
            adam_defaults(lr, betas, eps, weight_decay),
            settings={"momentum": momentum, "rank_fraction": rank_fraction, "seed": seed},
            group=group,
            timeout=timeout,
            guard=guard,
            wire=wire,
        )
        self._momentum, self._seed = momentum, seed
        kinds = [each["algorithm"] for each in self.options()]
        matrices = [at for at, kind in enumerate(kinds) if kind == "dion"]
        ranks = {at: math.ceil(rank_fraction * min(self.parameters[at].shape)) for at in matrices}
        worth = [at for at in matrices if _saves(self.parameters[at], ranks[at])]
        sizes = [self.parameters[at].numel() for at in worth]
        self._momentum_F = self.new_own("momentum", sum(sizes))
        own = dict(zip(worth, self._momentum_F.split(sizes), strict=True))
        # Those whose factors are exchanged come first.
        order = [*worth, *(at for at in matrices if at not in own)]
        self._matrices = [self._factorised(at, ranks[at], own.get(at)) for at in order]
        self._num_sent = len(worth)
        self._others = [at for at, kind in enumerate(kinds) if kind == "adamw"]
        for at in self._others:
            for name in ("exp_avg", "exp_avg_sq"):
                self.state[self.parameters[at]][name] = torch.zeros_like(self.parameters[at])

    def _factorised(self, at: int, rank: int, own: Tensor | None) -> Factorised:
        p = self.parameters[at]
        q = torch.randn(p.shape[1], rank, generator=generator(self._seed, at)).to(p.device)
        momentum = torch.zeros_like(p, requires_grad=False) if own is None else own.view(p.shape)
        self.state[p] |= {"momentum": momentum, "Q": q}
        return Factorised(at, own is None, momentum, q)

    def payload(self) -> dict[str, int]:
        """Bytes that a rank sends in a step, by kind."""
        dense = [*self._others, *(x.at for x in self._matrices if x.is_dense)]
        factors = sum(sum(x.momentum.shape) * x.q.shape[1] for x in self._matrices if not x.is_dense)
        return {"values": 4 * (factors + sum(self.parameters[at].numel() for at in dense))}

    @property
    def density(self) -> float:
        return self.payload()["values"] / (4 * self.layout.numel)

    def update(self, gradients: list[Tensor]) -> None:
        sent, dense = self._matrices[: self._num_sent], self._matrices[self._num_sent :]
        with phase("select"):
            for x in sent:
                x.momentum.add_(gradients[x.at])
            products = [x.momentum @ x.q for x in sent]
        means, products = self._mean(
            [gradients[at] for at in (*(x.at for x in dense), *self._others)], products
        )
        with phase("select"):
            for x, mean in zip(dense, means, strict=False):
                x.momentum.add_(mean)
            bases = by_shape(_orthonormal, [*products, *(x.momentum @ x.q for x in dense)])
            rights = [x.momentum.T @ basis for x, basis in zip(self._matrices, bases, strict=True)]
        _, rights[: len(sent)] = self._mean([], rights[: len(sent)])
        with phase("scatter"):
            for x, basis, right in zip(self._matrices, bases, rights, strict=True):
                self._descend(x, basis, right)
            self._adamw(means[len(dense) :])

    def _descend(self, x: Factorised, p: Tensor, r: Tensor) -> None:
        """Update a matrix and its state, from P and R."""
        group, (rows, columns) = self.options()[x.at], x.momentum.shape
        x.momentum.addmm_(p, r.T, alpha=self._momentum - 1)
        x.q.copy_(r / (torch.linalg.vector_norm(r, dim=0) + group["eps"]))
        self.parameters[x.at].mul_(1 - group["lr"] * group["weight_decay"])
        self.parameters[x.at].addmm_(p, x.q.T, alpha=-group["lr"] * math.sqrt(rows / columns))

    def _adamw(self, means: Sequence[Tensor]) -> None:
        """Update the other parameters by torch's AdamW, from their mean gradients."""
        mean_of, options = dict(zip(self._others, means, strict=True)), self.options()
        for group in self.param_groups:
            numbers = [at for at in self._others if options[at] is group]
            held: list[Tensor] = [self.parameters[at] for at in numbers]
            adamw(
                held,
                [mean_of[at] for at in numbers],
                [self.state[p]["exp_avg"] for p in held],
                [self.state[p]["exp_avg_sq"] for p in held],
                [],
                [(self.num_steps - 1).float() for _ in held],  # each is incremented, and not used again
                foreach=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def _mean(self, dense: Sequence[Tensor], factors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Means over ranks of dense tensors and of factors, by one all-reduce."""
        if not dense and not factors:
            return [], []
        mean = self.wire.mean(torch.cat([x.reshape(-1) for x in (*dense, *factors)]))
        mean_D, mean_F = mean.split([sum(x.numel() for x in dense), sum(x.numel() for x in factors)])
        pieces = mean_D.split([x.numel() for x in dense]) if dense else ()
        shapes = [(x.shape[0], x.shape[1]) for x in factors]
        return [piece.view_as(x) for piece, x in zip(pieces, dense, strict=True)], (
            unflatten(mean_F, shapes) if shapes else []
        )

    @torch.no_grad()
    def synchronize_for_checkpoint(self) -> None:
        """Replace every rank's momenta by their mean over ranks; a collective call.

        The updates of later steps stay the same up to rounding, because they depend on the mean alone. The
        name is that of the authors' code.
        """
        if self._momentum_F.numel():
            self.wire.mean(self._momentum_F, kind="state")

    def reset_own(self) -> None:
        """Keep the momenta, which `load_state_dict` has restored."""


def split_groups(params: Any) -> list[Group]:
    """Make groups with the key `algorithm`: `dion` for matrices, `adamw` for the other parameters.

    Args:
        params: As `torch.optim` takes them; groups may have the key already, for all their parameters.

    Raises:
        ValueError: A group has another algorithm.
    """
    given = list(params)
    groups: list[Group] = given if given and isinstance(given[0], dict) else [{"params": given}]
    found = []
    for group in groups:
        kind = group.get("algorithm", "dion")
        if kind not in ("dion", "adamw"):
            raise ValueError(f"algorithm={kind!r} of a group of parameters: expected dion or adamw")
        held = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        parts: dict[str, list[Any]] = {"dion": [], "adamw": []}
        for each in held:
            p: Tensor = each[1] if isinstance(each, tuple) else each
            parts["dion" if kind == "dion" and p.dim() == 2 and p.numel() else "adamw"].append(each)
        found += [{**group, "params": part, "algorithm": name} for name, part in parts.items() if part]
    return found


def _saves(p: Tensor, rank: int) -> bool:
    """Whether factors of this rank have fewer elements than the matrix."""
    return rank * sum(p.shape) < p.numel()


def _orthonormal(x: Tensor) -> Tensor:
    return torch.linalg.qr(x).Q
