"""DeMo: every rank keeps its momentum, of which the fast-moving components are exchanged."""
# N = elements of all parameters, T = tiles of a parameter, E = elements of a tile
# K = coefficients that one rank sends, B = bytes

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sage.comm.wire import Wire
from sage.optim.base import ReducingOptimizer
from sage.optim.coefficients import Exchange
from sage.optim.tiles import Tiling
from sage.timing import phase

VALUES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class DeMo(ReducingOptimizer):
    """Decoupled momentum: ranks exchange the largest DCT coefficients of their momenta, not gradients.

    Peng, Quesnelle, Kingma 2024, https://arxiv.org/abs/2411.19870, after the authors' code,
    https://github.com/bloc97/DeMo at 0e48145, `demo.py`. With this rank's gradient g, parameters x, learning
    rate lr, decay β and weight decay w:

        δ ← β δ + lr g
        q = the k coefficients of largest magnitude in each tile of DCT(δ)
        δ ← δ − IDCT(q)
        u = IDCT(mean of q over the ranks that sent the coefficient)
        x ← (1 − lr w) x − lr sign(u)

    The momentum δ differs between ranks, the parameters do not. With `average`, δ ← β δ + (1 − β) g. This is
    the form of the paper's second version for Signum, as a secondary source gives it (unverified). At a
    constant learning rate it makes the same updates.

    The DCT is linear, so δ is kept as its coefficients: extraction is then exact, and a step needs two
    transforms where the published code needs three. The coefficients are sent as bf16 by default; what is
    rounded off stays in δ. Published is the parameter's dtype.

    All ranks get the same parameters to the bit if their processors round the transform alike.
    `check_replicas()` compares them.

    Payload bytes per rank and step: for each tile of E elements k·(b/8 + 2), or k·(b/8 + 4) as fp32, with
    b = ⌈log2 E⌉ bits for a position: 112 for a tile of 64 × 64. The published code sends positions as int64:
    320 for such a tile in bf16, 384 in fp32. Memory per rank: one number per parameter.

    Args:
        params: Parameters or groups of them, as for every optimiser of torch.
        lr: The learning rate.
        decay: The factor β of the momentum in every step, at least 0 and below 1.
        k: Number of coefficients that are sent of each tile, 1 or more; of a smaller tile, all.
        edge: Largest edge of a tile, 1 to 256. The edge is the largest divisor of the parameter's own.
        weight_decay: Decoupled weight decay w.
        average: Whether the momentum is the running average of the gradients.
        values: Precision in which coefficients are sent: `bf16` or `fp32`.
        group, timeout, guard, wire: As in `ReducingOptimizer`.

    Raises:
        ValueError: if an option is out of range, or as in `ReducingOptimizer`.
    """

    name = "demo"
    own_is_averaged = True

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        decay: float = 0.999,
        k: int = 32,
        edge: int = 64,
        weight_decay: float = 0.0,
        average: bool = False,
        values: Literal["bf16", "fp32"] = "bf16",
        group: dist.ProcessGroup | None = None,
        timeout: float = 300.0,
        guard: bool = False,
        wire: Wire | None = None,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay!r}: expected 0 or more, and less than 1")
        if k < 1:
            raise ValueError(f"k={k!r}: expected a number of coefficients, 1 or more")
        if not 1 <= edge <= 256:
            raise ValueError(f"edge={edge!r}: expected the edge of a tile, 1 to 256")
        if values not in VALUES:
            raise ValueError(f"values={values!r}: expected bf16 or fp32")
        settings: dict[str, Any] = {
            "decay": decay,
            "k": k,
            "edge": edge,
            "average": average,
            "values": values,
        }
        super().__init__(
            params,
            {"lr": lr, "weight_decay": weight_decay},
            settings=settings,
            group=group,
            timeout=timeout,
            guard=guard,
            wire=wire,
        )
        self._decay, self._average = decay, average
        self._spans = [(at, span) for at, span in enumerate(self.layout.spans) if span.numel]
        self._tilings = [Tiling.of(span.shape, edge) for _, span in self._spans]
        self._exchange = Exchange(self._tilings, k, VALUES[values], self.device)
        self._delta_N = self.new_own("delta", self.layout.numel)

    @property
    def density(self) -> float:
        return self._exchange.num_sent / max(1, self.layout.numel)

    def payload(self) -> dict[str, int]:
        """Bytes that a rank sends in a step, by kind."""
        return self._exchange.payload()

    def update(self, gradients: list[Tensor]) -> None:
        options, kept = self.options(), list[Tensor]()
        with phase("select"):
            for (at, span), tiling in zip(self._spans, self._tilings, strict=True):
                delta_TE = self._delta_N[span.start : span.stop].view(-1, tiling.size).mul_(self._decay)
                share = 1 - self._decay if self._average else options[at]["lr"]
                kept.append(delta_TE.add_(tiling.coefficients(gradients[at]), alpha=share))
            values_K, packed_B = self._exchange.extract_(kept)
        means = self._exchange.mean(values_K, packed_B, self.wire)
        with phase("scatter"):
            for (at, span), tiling, mean_TE in zip(self._spans, self._tilings, means, strict=True):
                p, lr = self.parameters[at], options[at]["lr"]
                p.mul_(1 - lr * options[at]["weight_decay"])
                p.add_(tiling.elements(mean_TE).sign_().view(span.shape), alpha=-lr)
