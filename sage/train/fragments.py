"""Divides the parameters of a model into fragments, and joins the outer optimisers of several of them.

Streaming DiLoCo (Douillard et al. 2025, https://arxiv.org/abs/2501.18512) divides a model into fragments of
whole transformer blocks, either adjacent ones or every P-th one (strided).
"""
# N = elements of the weights of one fragment

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from sage.mount.parameters import as_real
from sage.train.outer import Outer

Order = Literal["strided", "sequential"]


def unit_of(name: str) -> str:
    """Name of the part of a model that is never divided: a numbered block, or else a module.

    >>> unit_of("blocks.3.attention.qkv.weight"), unit_of("decoder.weight"), unit_of("scale")
    ('blocks.3', 'decoder', 'scale')
    """
    words = name.split(".")
    for number, word in enumerate(words):
        if word.isdecimal():
            return ".".join(words[: number + 1])
    return ".".join(words[:-1]) or name


def fragments_of(names: Sequence[str], num: int, order: Order) -> list[list[str]]:
    """Divide parameters into fragments of whole units.

    Args:
        names: Names of the parameters, in the order of the model.
        num: Number of fragments, P.
        order: Of U units, number u is in fragment u mod P (`strided`) or ⌊u·P/U⌋ (`sequential`).

    Raises:
        ValueError: The model has fewer units than there are to be fragments.

    >>> fragments_of(["a.w", "a.b", "b.0.w", "b.1.w", "b.2.w"], 2, "strided")
    [['a.w', 'a.b', 'b.1.w'], ['b.0.w', 'b.2.w']]
    >>> fragments_of(["a.w", "a.b", "b.0.w", "b.1.w", "b.2.w"], 2, "sequential")
    [['a.w', 'a.b', 'b.0.w'], ['b.1.w', 'b.2.w']]
    """
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(unit_of(name), []).append(name)
    if len(units) < num:
        raise ValueError(
            f"fragments is {num}, but the model has {len(units)} parts that can be exchanged separately "
            f"(its blocks, and modules outside of blocks): set --fragments to {len(units)} or less"
        )
    found: list[list[str]] = [[] for _ in range(num)]
    for number, unit in enumerate(units.values()):
        found[number % num if order == "strided" else number * num // len(units)] += unit
    return found


def first_steps(num: int, period: int) -> list[int]:
    """Number of local steps after which each of P fragments is first exchanged: spread evenly over H.

    >>> first_steps(4, 30), first_steps(1, 30)
    ([7, 15, 22, 30], [30])
    """
    return [max(1, (number + 1) * period // num) for number in range(num)]


class JoinedOuter(Outer):
    """The weights θ of a whole model, of which each part has an outer optimiser of its own.

    Args:
        parts: The outer optimisers; together they have all parameters.
    """

    def __init__(self, parts: Sequence[Outer]) -> None:
        self.parts = parts
        self.named = {name: p for part in parts for name, p in part.named.items()}

    def anchors(self) -> dict[str, Tensor]:
        return {name: x for part in self.parts for name, x in part.anchors().items()}

    def kept(self) -> list[Tensor]:
        return [x for part in self.parts for x in part.kept()]

    def adopt(self) -> None:
        for part in self.parts:
            part.adopt()

    def reset(self) -> None:
        for part in self.parts:
            part.reset()

    def state_dict(self) -> dict[str, Tensor]:
        return {name: x for part in self.parts for name, x in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for part in self.parts:
            part.load_state_dict({name: state[name] for name in part.named} if state else {})


@torch.no_grad()
def mix(outer: Outer, own_share: float) -> None:
    """Set the weights θ_i of a rank to α θ_i + (1 − α) θ, where α is `own_share`; exactly θ at α = 0."""
    if own_share == 0:
        outer.reset()
        return
    for name, anchor in outer.anchors().items():
        as_real(outer.named[name]).lerp_(anchor, 1 - own_share)
