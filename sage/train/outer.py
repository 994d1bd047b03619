"""The outer optimiser of local updates, and the weights that it updates.

After a round of local steps, a rank's weights differ from the weights θ from which all ranks have started by
the pseudo-gradient Δ_i = θ − θ_i. With its mean Δ over ranks, learning rate γ and momentum β, the outer
optimiser takes the step

    none       θ <- θ − Δ
    sgd        M <- β M + Δ,  θ <- θ − γ M
    nesterov   M <- β M + Δ,  θ <- θ − γ (Δ + β M)

and every rank continues from θ. The formulas are those of torch.optim.SGD, with Δ in place of a gradient
(Reddi et al. 2021, https://arxiv.org/abs/2003.00295, algorithm 1; DiLoCo: Douillard et al. 2023,
https://arxiv.org/abs/2311.08105, algorithm 1). SlowMo (Wang et al. 2019, https://arxiv.org/abs/1910.00643,
algorithm 1) divides Δ by the inner learning rate η, and multiplies γ by it.
"""
# N = elements of the weights

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from sage.mount.parameters import as_real, real_dtype


class Outer:
    """The weights θ that all ranks have in common, and their outer optimiser.

    Several objects may divide the parameters of a model between them.

    Args:
        named: The parameters by name, in the order of the flat vector.
        optimizer: The rule; None: subtract the mean.
        lr: The learning rate γ.
        momentum: The momentum β; at 0, no momentum is kept.
    """

    def __init__(
        self,
        named: Mapping[str, Tensor],
        *,
        optimizer: Literal["sgd", "nesterov"] | None = None,
        lr: float = 1.0,
        momentum: float = 0.0,
    ) -> None:
        self.named = dict(named)
        self.lr, self.momentum, self._is_nesterov = lr, momentum, optimizer == "nesterov"
        first = next(iter(named.values()))
        num_elements = sum(as_real(p.detach()).numel() for p in named.values())
        self.anchor_N = torch.zeros(num_elements, dtype=real_dtype(first), device=first.device)
        """The weights θ of the last outer step, bitwise identical on every rank."""
        self.momentum_N = torch.zeros_like(self.anchor_N) if optimizer is not None and momentum else None
        """The momentum M; None if there is none."""
        self.adopt()

    def of_each(self, x_N: Tensor) -> dict[str, Tensor]:
        """View of each parameter's elements in a flat vector, in the parameter's own shape, by name."""
        shapes = {name: as_real(p.detach()).shape for name, p in self.named.items()}
        parts = x_N.split([shape.numel() for shape in shapes.values()])
        return {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}

    def anchors(self) -> dict[str, Tensor]:
        """The weights θ of each parameter, by name."""
        return self.of_each(self.anchor_N)

    def kept(self) -> list[Tensor]:
        """The vectors that are kept between two outer steps: θ, and the momentum if there is one."""
        return [self.anchor_N] if self.momentum_N is None else [self.anchor_N, self.momentum_N]

    @torch.no_grad()
    def adopt(self) -> None:
        """Set the weights θ to those of the model."""
        for name, anchor in self.anchors().items():
            anchor.copy_(as_real(self.named[name]))

    @torch.no_grad()
    def reset(self) -> None:
        """Set the weights of the model to θ."""
        for name, anchor in self.anchors().items():
            as_real(self.named[name]).copy_(anchor)

    @torch.no_grad()
    def pseudo_gradient(self, out_N: Tensor) -> None:
        """Write Δ_i = θ − θ_i, where θ_i are the weights of the model."""
        for name, part in self.of_each(out_N).items():
            part.copy_(as_real(self.named[name]))
        torch.sub(self.anchor_N, out_N, out=out_N)

    @torch.no_grad()
    def step(self, mean_N: Tensor, *, scale: float = 1.0) -> None:
        """Update θ with the mean pseudo-gradient; γ is multiplied by `scale`."""
        update_N = mean_N
        if self.momentum_N is not None:
            self.momentum_N.mul_(self.momentum).add_(mean_N)
            update_N = self.momentum_N
            if self._is_nesterov:
                update_N = mean_N.add(self.momentum_N, alpha=self.momentum)
        self.anchor_N.sub_(update_N, alpha=self.lr * scale)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the momentum by parameter; θ itself is the model of a checkpoint. Empty without momentum."""
        return {} if self.momentum_N is None else self.of_each(self.momentum_N)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the momentum; an empty state is that of an outer optimiser without momentum.

        Raises:
            ValueError: A parameter's momentum is missing or has another shape.
        """
        if self.momentum_N is None or not state:
            return
        momenta = self.of_each(self.momentum_N)
        check_fits("the outer momentum", state, momenta)
        for name, momentum in momenta.items():
            momentum.copy_(state[name])


def check_fits(what: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse a state whose names or shapes differ from those of the tensors that it is copied to.

    Raises:
        ValueError: They differ.
    """
    if state.keys() != wanted.keys():
        raise ValueError(f"{what}: the names differ from the model's")
    for name, x in wanted.items():
        if state[name].shape != x.shape:
            raise ValueError(f"{what}: {name} has shape {[*state[name].shape]}, not {[*x.shape]}")
