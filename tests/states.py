"""Collects the state of a training in one dictionary of tensors."""

from torch import Tensor

from sage.train.loop import Training


def states(training: Training) -> dict[str, Tensor]:
    """Return everything that a step may change: weights, optimiser and errors, residual, controller, ..."""
    found = {f"model.{name}": x for name, x in training.model.state_dict().items()}
    found |= {f"feedback.{name}": x for name, x in training.mount.flats[0].feedback.state_dict().items()}
    found |= {f"before.{name}": x for name, x in training.mount.state_dict()["before"].items()}
    for number, state in training.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{name}": x for name, x in state.items() if isinstance(x, Tensor)}
    if training.exchanging is not None:
        found |= {f"own.{name}": x for name, x in training.exchanging.own.items()}
    return {name: x.clone() for name, x in found.items()}
