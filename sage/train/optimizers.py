"""Builds the optimiser that applies the mean gradient, with groups of parameters.

| kind     | class                                                  | weight decay          |
|----------|--------------------------------------------------------|-----------------------|
| `sgd`    | torch.optim.SGD                                        | added to the gradient |
| `adam`   | torch.optim.Adam                                       | added to the gradient |
| `adamw`  | torch.optim.AdamW                                      | decoupled             |
| `muon`   | torch.optim.Muon, torch.optim.AdamW: `sage.train.muon` | decoupled             |
| `signum` | `sage.train.signum`                                    | decoupled             |

Those that communicate, such as `onebit-adam`, are in `sage.optim`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sage import optim
from sage.comm.wire import Wire
from sage.train.muon import Group, MuonWithAdamW
from sage.train.parameter_rules import decays, embeddings, hidden_matrices
from sage.train.signum import Signum


def build_optimizer(
    model: nn.Module,
    *,
    kind: str,
    lr: float,
    trained: Sequence[Tensor] | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay_norms: bool = True,
    decay_embeddings: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    adamw_lr: float | None = None,
    adamw_names: Sequence[str] | None = None,
    ns_steps: int = 5,
    adjust_lr_fn: str = "original",
    wire: Wire | None = None,
    exchange: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """Build the optimiser for the mean gradient, with groups with and without weight decay.

    Args:
        model: Its layers decide which parameters are embeddings.
        kind: The name of the optimiser.
        lr: The learning rate.
        trained: The tensors to update, in the order of the model's parameters; None: the parameters.
        momentum, nesterov: Options of SGD, Signum, Muon and, without nesterov, Dion.
        weight_decay: The weight decay.
        decay_norms: Whether one-dimensional parameters (scales and shifts of the norms, biases) have it too.
        decay_embeddings: Whether the parameters of embedding layers have it too.
        betas, eps: Options of Adam and AdamW, also of Muon's and Dion's AdamW.
        adamw_lr: With Muon and Dion: the learning rate of the parameters that AdamW updates; None: `lr`.
        adamw_names: With Muon and Dion: see `hidden_matrices`.
        ns_steps, adjust_lr_fn: Options of Muon.
        wire: The communicator of an optimiser that communicates.
        exchange: The further options of such an optimiser.

    Raises:
        ValueError: There is no such optimiser, or Muon is not available or has no matrix to update.
    """
    names = [name for name, _ in model.named_parameters()]
    named = dict(zip(names, model.parameters() if trained is None else trained, strict=True))
    undecaying = set() if decay_embeddings else embeddings(model)

    def groups(names: Sequence[str]) -> list[Group]:
        decayed = [name for name in names if decays(named[name], decay_norms) and name not in undecaying]
        undecayed = [name for name in names if name not in set(decayed)]
        return [
            {"params": [named[name] for name in decayed], "weight_decay": weight_decay},
            {"params": [named[name] for name in undecayed], "weight_decay": 0.0},
        ]

    def matrices_and_others() -> tuple[list[Group], list[Group]]:
        matrices = hidden_matrices(model, adamw_names=adamw_names, optimizer=kind)
        ratio = 1.0 if adamw_lr is None else adamw_lr / lr
        others = groups([name for name in names if name not in matrices])
        return (
            groups([name for name in names if name in matrices]),
            [{**group, "lr_ratio": ratio} for group in others],
        )

    match kind:
        case "sgd":
            return torch.optim.SGD(groups(names), lr=lr, momentum=momentum, nesterov=nesterov, foreach=True)
        case "adam":
            return torch.optim.Adam(groups(names), lr=lr, betas=betas, eps=eps, foreach=True)
        case "adamw":
            return torch.optim.AdamW(groups(names), lr=lr, betas=betas, eps=eps, foreach=True)
        case "signum":
            return Signum(groups(names), lr=lr, momentum=momentum, nesterov=nesterov)
        case "muon":
            return MuonWithAdamW(
                *matrices_and_others(),
                lr=lr,
                momentum=momentum,
                nesterov=nesterov,
                ns_steps=ns_steps,
                adjust_lr_fn=adjust_lr_fn,
                betas=betas,
                eps=eps,
            )
        case "dion":
            matrices, others = matrices_and_others()
            return optim.Dion(
                [*matrices, *({**group, "algorithm": "adamw"} for group in others)],
                lr=lr,
                momentum=momentum,
                betas=betas,
                eps=eps,
                wire=wire,
                **(exchange or {}),
            )
        case "demo":
            return optim.DeMo(groups(names), lr=lr, wire=wire, **(exchange or {}))
        case _ if kind in optim.BY_NAME:
            make = optim.BY_NAME[kind]
            return make(groups(names), lr=lr, betas=betas, eps=eps, wire=wire, **(exchange or {}))
    raise ValueError(
        f"no optimiser is called {kind!r}: choose sgd, adam, adamw, muon, signum, {', '.join(optim.BY_NAME)}"
    )
