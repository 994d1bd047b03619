"""Recorded gradients of the model, which every reducer reduces again with its own error feedback."""
# N = elements of the flat gradient

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sage import registry
from sage.config import Config
from sage.mount import WholeModel
from sage.mount.flat import Flat
from sage.reduction.reducer import Reducer
from sage.train.schedules import memory_options


@dataclass(frozen=True)
class Gradients:
    """One rank's gradients of a few steps, in the order of a mount's flat vector."""

    shapes: Sequence[tuple[str, tuple[int, ...]]]
    """Name and shape of each parameter, in this order."""
    always: frozenset[str]
    """Parameters that are compressed even if they are small."""
    steps: Sequence[Tensor]
    """The gradient (N) of each step."""

    @property
    def numel(self) -> int:
        """N."""
        return self.steps[0].numel()

    def views(self, step: int) -> Mapping[str, Tensor]:
        """Return the gradient of each parameter at a step; after the last step the first one follows."""
        pieces = self.steps[step % len(self.steps)].split([torch.Size(s).numel() for _, s in self.shapes])
        return {name: x.view(shape) for (name, shape), x in zip(self.shapes, pieces, strict=True)}


def gradients_of(mount: WholeModel, steps: Sequence[Tensor]) -> Gradients:
    """Return the gradients that a mount's reducer received, with the positions of the parameters in them."""
    spans = mount.layout.spans
    named = zip(spans, mount.parameters_in_order, strict=True)
    return Gradients(
        shapes=[(span.name, span.shape) for span in spans],
        always=frozenset(span.name for span, p in named if p.is_complex()),
        steps=steps,
    )


def reducer_of(config: Config) -> Reducer:
    """Return a new reducer; raises a ValueError if one of its options is wrong."""
    reducer: Reducer = registry.load("reducers", config.reducer)(**config.reducer_options)
    return reducer


def flat_of(config: Config, gradients: Gradients) -> Flat:
    """Return a flat vector with a new reducer over it, as `sage run` would mount it.

    Raises:
        ValueError: An option of the reducer or of the error feedback is wrong.
    """
    x_N = gradients.steps[0]
    return Flat(
        gradients.shapes,
        reducer_of(config),
        dtype=x_N.dtype,
        device=x_N.device,
        memory=config.memory,
        memory_options=memory_options(config),
        grouping=config.grouping,
        min_compress=config.min_compress,
        always=gradients.always,
    )


def fill(flat: Flat, views: Mapping[str, Tensor]) -> None:
    """Copy the parameters' gradients into a flat vector, which may have another order."""
    for name, view in flat.views().items():
        view.copy_(views[name])
