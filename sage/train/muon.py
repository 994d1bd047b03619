"""Muon for the hidden matrices of a model and AdamW for its other parameters, as one optimiser.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon/. Both parts are torch's own.
"""

from collections.abc import Sequence
from typing import Any

import torch

Group = dict[str, Any]


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon and torch.optim.AdamW with one list of groups and one state.

    Args:
        matrices: Groups of 2-D parameters for Muon.
        others: Groups for AdamW.
        lr: The learning rate, of groups that have none of their own.
        momentum, nesterov, ns_steps, adjust_lr_fn: Options of Muon, as torch names them.
        betas, eps: Options of AdamW, as torch names them.

    Raises:
        ValueError: This version of torch has no Muon.
    """

    def __init__(
        self,
        matrices: Sequence[Group],
        others: Sequence[Group],
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        adjust_lr_fn: str,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        check_available()
        muon = torch.optim.Muon(
            matrices, lr, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn
        )
        adamw = torch.optim.AdamW(others, lr, betas=betas, eps=eps, foreach=True)
        self._parts: list[torch.optim.Optimizer] = [muon, adamw]
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Make the parts use this optimiser's groups and state."""
        start = 0
        for part in self._parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:end], self.state
            start = end

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; the closure, if there is one, computes loss and gradient again."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._share()


def check_available() -> None:
    """Refuse a version of torch that has no Muon.

    Raises:
        ValueError: It has none.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"optimizer is 'muon', but torch {torch.__version__} has no torch.optim.Muon: install torch 2.9 "
            "or later, or use --optimizer adamw"
        )
